{{/* Remote tiers of tiers.remote that pods as they are rendered could not reach. */}}
{{- define "kvblend.remoteRefusals" -}}
{{- $v := .Values -}}
{{- $credentials := or $v.serviceAccountName $v.envFrom -}}
{{- range $v.extraEnv -}}
{{- $credentials = or $credentials (hasPrefix "AWS_" .name) -}}
{{- end -}}
{{- range $url := $v.tiers.remote -}}
{{- if hasPrefix "nixl://" $url -}}
{{- fail (printf "tiers.remote names %s: peers list each other's addresses, which pods do not have before they start, and take ports that the network policy keeps closed; name a store (redis://, rediss://, s3:// or mooncake://) or set valkey.enabled" $url) -}}
{{- end -}}
{{- if and (hasPrefix "s3://" $url) (not $credentials) -}}
{{- fail (printf "tiers.remote names %s and nothing brings its credentials: name in envFrom a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in serviceAccountName an account with a role, or AWS_ variables in extraEnv" $url) -}}
{{- end -}}
{{- if and (hasPrefix "mooncake://" $url) $v.networkPolicy.enabled (regexMatch "[?&]segment=0*[1-9]" $url) -}}
{{- fail (printf "tiers.remote names %s: with `segment` the pods lend the store memory, which other members reach at ports that the network policy keeps closed; leave segment out" $url) -}}
{{- end -}}
{{- range regexFindAll "ssl_(ca_certs|certfile|keyfile)=[^&]*" $url -1 -}}
{{- $path := regexReplaceAll "^[^=]*=" . "" -}}
{{- $mounted := false -}}
{{- range $v.extraVolumeMounts -}}
{{- $mounted = or $mounted (eq $path .mountPath) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $path) -}}
{{- end -}}
{{- if not $mounted -}}
{{- fail (printf "tiers.remote names the file %s, which no mountPath of extraVolumeMounts holds: mount it from a Secret or ConfigMap with extraVolumes and extraVolumeMounts" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
