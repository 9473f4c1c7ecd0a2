{{/* What values.schema.json cannot say: values that do not go together. Each is refused in a sentence. */}}
{{- define "kvblend.refusals" -}}
{{- $v := .Values -}}
{{- $tiers := $v.tiers -}}
{{- $cpu := int $tiers.cpuGiB -}}
{{- $shm := int $tiers.shmGiB -}}
{{- $disk := int $tiers.diskGiB -}}
{{- $replicas := int $v.engine.replicas -}}
{{- $remote := include "kvblend.remote" . -}}
{{- if not $v.model -}}
{{- fail "model is empty: name the model to serve, by its Hugging Face name or a folder of the image" -}}
{{- end -}}
{{- if has $v.model (list "demo" "qwen-coder") -}}
{{- fail (printf "model is %s, which only a `kvblend serve` fetches that starts its own vLLM: name a Hugging Face model or a folder of the image" $v.model) -}}
{{- end -}}
{{- if and (ne $v.layout "hostPath") $cpu (lt $shm (add $cpu 1 | int)) -}}
{{- fail (printf "tiers.cpuGiB is %d and tiers.shmGiB %d: the CPU tier lies in /dev/shm, which takes it and 1 GiB for vLLM's own segments, so tiers.shmGiB is to be %d or more" $cpu $shm (add $cpu 1)) -}}
{{- end -}}
{{- if and (eq $cpu 0) (eq $disk 0) -}}
{{- fail "tiers.cpuGiB and tiers.diskGiB are both 0: a store needs one tier" -}}
{{- end -}}
{{- if and (ne $v.layout "hostPath") (lt (int $v.home.storageGiB) (add $disk 4 | int)) -}}
{{- fail (printf "home.storageGiB is %d and tiers.diskGiB %d: the disk tier lies in the home volume, with 4 GiB or more for catalogs and models, so home.storageGiB is to be %d or more" (int $v.home.storageGiB) $disk (add $disk 4)) -}}
{{- end -}}
{{- if and (gt $replicas 1) (ne $v.layout "remote") -}}
{{- fail (printf "engine.replicas is %d and layout %s: engines that share no folders take layout remote, or a release each" $replicas $v.layout) -}}
{{- end -}}
{{- if and (eq $v.layout "hostPath") (not (hasKey $v.nodeSelector "kubernetes.io/hostname")) -}}
{{- fail "layout is hostPath and nodeSelector has no kubernetes.io/hostname: folders are one node's, so nodeSelector is to name it by that label" -}}
{{- end -}}
{{- if eq $v.layout "remote" -}}
{{- if not $remote -}}
{{- fail "layout is remote and there is no remote tier: set valkey.enabled, or tiers.remote to the URLs of stores that are there" -}}
{{- end -}}
{{- if or (eq $cpu 0) (eq $disk 0) -}}
{{- fail (printf "layout is remote, tiers.cpuGiB %d and tiers.diskGiB %d: engines need a CPU tier and the service a disk tier of 1 GiB or more" $cpu $disk) -}}
{{- end -}}
{{- if not $v.networkPolicy.enabled -}}
{{- fail "networkPolicy.enabled is false and the control address is on TCP: whoever reaches it gives the engine orders, and it asks nobody for a password, so it needs the network policy (or layout pod or hostPath)" -}}
{{- end -}}
{{- end -}}
{{- if and $v.externalEngines (ne $v.layout "remote") -}}
{{- fail (printf "externalEngines are set and layout is %s: engines that something else runs share no folders with the service, so layout is to be remote" $v.layout) -}}
{{- end -}}
{{- if and $v.valkey.enabled (not $v.networkPolicy.enabled) (not $v.secrets.remotePassword.name) -}}
{{- fail "valkey.enabled without a network policy and without secrets.remotePassword: anybody in the cluster could read and delete passage KV, so set one of them" -}}
{{- end -}}
{{- if and $v.podMonitor.enabled $v.secrets.keys.name (not $v.secrets.apiKey.name) -}}
{{- fail "podMonitor.enabled and secrets.keys without secrets.apiKey: with a file of keys /metrics is the operator's alone, so Prometheus needs secrets.apiKey to show" -}}
{{- end -}}
{{- if and $v.podMonitor.alerts (not $v.podMonitor.enabled) -}}
{{- fail "podMonitor.alerts is true and podMonitor.enabled false: the alerts' rules go by metrics that nobody would scrape, so podMonitor.enabled is to be true" -}}
{{- end -}}
{{- if and $v.podMonitor.enabled $v.networkPolicy.enabled (not $v.networkPolicy.monitoring) (include "kvblend.ownEngine" .) -}}
{{- fail (printf "podMonitor.enabled is true and networkPolicy.monitoring empty: the network policy lets nobody scrape the engine's port %d, so networkPolicy.monitoring is to name Prometheus's pods" (int $v.engine.port)) -}}
{{- end -}}
{{- include "kvblend.remoteRefusals" . -}}
{{- include "kvblend.engineRefusals" . -}}
{{- include "kvblend.settingRefusals" . -}}
{{- end }}
