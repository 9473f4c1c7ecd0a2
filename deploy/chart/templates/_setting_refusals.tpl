{{/* Numbers among the settings that are out of their bounds (files/setting_bounds.yaml), and variables in extraEnv that have a value of their own. */}}
{{- define "kvblend.settingRefusals" -}}
{{- $bounds := .Files.Get "files/setting_bounds.yaml" | fromYaml -}}
{{- range $name, $value := .Values.settings -}}
{{- $of := get $bounds $name | default dict -}}
{{- with $of.minimum -}}
{{- if lt (float64 $value) (float64 .) -}}
{{- fail (printf "settings.%s is %s: it is to be %s or more" $name $value .) -}}
{{- end -}}
{{- end -}}
{{- with $of.exclusiveMinimum -}}
{{- if le (float64 $value) (float64 .) -}}
{{- fail (printf "settings.%s is %s: it is to be above %s" $name $value .) -}}
{{- end -}}
{{- end -}}
{{- with $of.maximum -}}
{{- if gt (float64 $value) (float64 .) -}}
{{- fail (printf "settings.%s is %s: it is to be %s or less" $name $value .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $of := dict
  "HF_TOKEN" "secrets.huggingFaceToken"
  "OMP_NUM_THREADS" "engine.cpus and service.cpus"
  "OTEL_EXPORTER_OTLP_ENDPOINT" "tracing.endpoint"
  "OTEL_EXPORTER_OTLP_PROTOCOL" "tracing.protocol"
  "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" "tracing.protocol"
  "VLLM_API_KEY" "secrets.engineApiKey"
  "VLLM_CPU_KVCACHE_SPACE" "engine.kvCacheGiB"
-}}
{{- range .Values.extraEnv -}}
{{- if and (hasPrefix "KVBLEND_" .name) (not (has .name (list "KVBLEND_EMBEDDING_API_KEY" "KVBLEND_RERANKER_API_KEY"))) -}}
{{- fail (printf "extraEnv names %s: kvblend's own settings go by `settings`, tiers and secrets" .name) -}}
{{- end -}}
{{- if has .name (list "OTEL_SERVICE_NAME" "VLLM_CPU_OMP_THREADS_BIND" "VLLM_NO_USAGE_STATS") -}}
{{- fail (printf "extraEnv names %s, which the chart sets itself" .name) -}}
{{- end -}}
{{- if hasKey $of .name -}}
{{- fail (printf "extraEnv names %s, which the chart sets itself: set %s" .name (get $of .name)) -}}
{{- end -}}
{{- end -}}
{{- end }}
