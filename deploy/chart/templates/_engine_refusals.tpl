{{/* Ports, sizes, images and arguments with which the chart's own engine, or the service before it, could not start. */}}
{{- define "kvblend.engineRefusals" -}}
{{- $v := .Values -}}
{{- $engine := $v.engine -}}
{{- if include "kvblend.ownEngine" . -}}
{{- if and (eq $v.layout "pod") (eq (int $v.service.port) (int $engine.port)) -}}
{{- fail (printf "service.port and engine.port are both %d and layout is pod: the containers of a pod share their ports, so engine.port is to be another one" (int $engine.port)) -}}
{{- end -}}
{{- if and (eq $v.layout "remote") (eq (int $engine.controlPort) (int $engine.port)) -}}
{{- fail (printf "engine.controlPort and engine.port are both %d: vLLM and its control channel each need a port, so engine.controlPort is to be another one" (int $engine.port)) -}}
{{- end -}}
{{- /* The least that `kvblend kv size` reckons: 1 GiB of weights, 6 of vLLM itself. */ -}}
{{- $least := add $engine.kvCacheGiB 7 | int -}}
{{- if and (eq (int $engine.gpus) 0) (lt (int $engine.memoryGiB) $least) -}}
{{- fail (printf "engine.memoryGiB is %d and engine.kvCacheGiB %d: without a GPU the KV cache lies in the engine's memory, with 7 GiB or more for weights and vLLM itself, so engine.memoryGiB is to be %d or more" (int $engine.memoryGiB) (int $engine.kvCacheGiB) $least) -}}
{{- end -}}
{{- if and (gt (int $engine.gpus) 0) (regexMatch "(^|[^a-z])cpu($|[^a-z])" $v.image.tag) -}}
{{- fail (printf "engine.gpus is %d and image.tag %s: vLLM for CPUs uses no GPU, so image.tag is to name an image of the target cuda" (int $engine.gpus) $v.image.tag) -}}
{{- end -}}
{{- if and (eq (int $engine.gpus) 0) (regexMatch "(^|[^a-z])cuda($|[^a-z])" $v.image.tag) -}}
{{- fail (printf "engine.gpus is 0 and image.tag %s: vLLM for GPUs does not start without one, so engine.gpus is to be 1 or more" $v.image.tag) -}}
{{- end -}}
{{- end -}}
{{- $of := dict
  "--kv-transfer-config" "the chart names kvblend's connector there; an engine with others beside it is one of externalEngines"
  "--load-format" "kvblend's is the one that the connector needs"
  "--scheduling-policy" "it is priority, so that encodes go behind answers"
  "--host" "it is 0.0.0.0"
  "--port" "set engine.port"
  "--tensor-parallel-size" "set engine.gpus"
  "-tp" "set engine.gpus"
  "--otlp-traces-endpoint" "set tracing.endpoint"
-}}
{{- range $engine.args -}}
{{- $option := regexReplaceAll "=.*" . "" | replace "_" "-" -}}
{{- with get $of $option -}}
{{- fail (printf "engine.args has %s, which the chart sets itself: %s" $option .) -}}
{{- end -}}
{{- end -}}
{{- $of = dict
  "--engine-url" "other engines than the chart's are externalEngines"
  "--control" "of other engines than the chart's it is externalEngines' control"
  "--host" "it is 0.0.0.0"
  "--port" "set service.port"
  "--home" "it is the home volume"
  "--dtype" "it is an argument of vLLM, for engine.args"
  "--max-model-len" "it is an argument of vLLM, for engine.args"
  "--tensor-parallel-size" "set engine.gpus"
  "--" "arguments of vLLM are engine.args"
-}}
{{- range $v.service.args -}}
{{- $option := regexReplaceAll "=.*" . "" -}}
{{- with get $of $option -}}
{{- fail (printf "service.args has %s, which is not the service's to take here: %s" $option .) -}}
{{- end -}}
{{- end -}}
{{- end }}
