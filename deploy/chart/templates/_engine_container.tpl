{{- define "kvblend.engineContainer" -}}
{{- $v := .Values -}}
{{- $cpus := int $v.engine.cpus -}}
name: engine
{{ include "kvblend.image" . }}
command: [vllm, serve, {{ $v.model | quote }}]
args:
  - --host=0.0.0.0
  - --port={{ $v.engine.port }}
  - --enable-prompt-tokens-details
  # Encodes go behind answers.
  - --scheduling-policy=priority
  - --load-format=kvblend
  - --kv-transfer-config={"kv_connector":"KVBlendConnector","kv_connector_module_path":"kvblend.vllm_connector","kv_role":"kv_both","kv_load_failure_policy":"recompute"}
  {{- if gt (int $v.engine.gpus) 1 }}
  - --tensor-parallel-size={{ $v.engine.gpus }}
  {{- end }}
  {{- if not (has "--disable-log-stats" $v.engine.args) }}
  # An answer that is not streamed has its time to first token.
  - --enable-per-request-metrics
  # Spans go where the service's go; vLLM makes its own of the same statistics.
  {{- with $v.tracing.endpoint }}
  - --otlp-traces-endpoint={{ ternary . (printf "%s/v1/traces" (trimSuffix "/" .)) (eq $v.tracing.protocol "grpc") }}
  {{- end }}
  {{- end }}
  {{- if eq (toString $v.settings.KVBLEND_LOG_FORMAT) "json" }}
  - --logging-config.formatter=json
  {{- end }}
  {{- range $v.engine.args }}
  - {{ . | quote }}
  {{- end }}
{{ include "kvblend.envFrom" . -}}
env:
  {{- include "kvblend.storeEnv" (dict "root" . "cpuGiB" (int $v.tiers.cpuGiB) "diskGiB" (ternary 0 (int $v.tiers.diskGiB) (eq $v.layout "remote"))) | nindent 2 }}
  - name: KVBLEND_CONTROL
    value: {{ ternary (printf "tcp://0.0.0.0:%d" (int $v.engine.controlPort)) "ipc:///run/kvblend/control.sock" (eq $v.layout "remote") | quote }}
  {{- with include "kvblend.secretEnv" (dict "name" "VLLM_API_KEY" "secret" $v.secrets.engineApiKey) }}
  {{- nindent 2 . }}
  {{- end }}
  {{- if eq (int $v.engine.gpus) 0 }}
  - name: VLLM_CPU_KVCACHE_SPACE
    value: {{ $v.engine.kvCacheGiB | quote }}
  - name: VLLM_CPU_OMP_THREADS_BIND
    value: nobind
  - name: OMP_NUM_THREADS
    value: {{ $cpus | quote }}
  {{- end }}
  {{- if $v.tracing.endpoint }}
  - name: OTEL_SERVICE_NAME
    value: vllm
  - name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
    value: {{ $v.tracing.protocol }}
  {{- end }}
  - name: VLLM_NO_USAGE_STATS
    value: "1"
ports:
  - name: engine
    containerPort: {{ $v.engine.port }}
  {{- if eq $v.layout "remote" }}
  - name: control
    containerPort: {{ $v.engine.controlPort }}
  {{- end }}
startupProbe:
  httpGet: {path: /health, port: engine}
  periodSeconds: 5
  failureThreshold: {{ mul 12 $v.engine.startMinutes }}
livenessProbe:
  httpGet: {path: /health, port: engine}
  periodSeconds: 10
  timeoutSeconds: 15
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /health, port: engine}
  periodSeconds: 5
  timeoutSeconds: 15
# Longer than the service's drain and what comes before it: answers that run are finished.
lifecycle:
  preStop:
    sleep: {seconds: 15}
resources:
  requests: {cpu: {{ $cpus }}, memory: {{ add $v.engine.memoryGiB (ternary 1 (int $v.tiers.shmGiB) (eq $v.layout "hostPath")) }}Gi}
  limits:
    memory: {{ add $v.engine.memoryGiB (ternary (add (int $v.tiers.cpuGiB) 1) (int $v.tiers.shmGiB) (eq $v.layout "hostPath")) }}Gi
    {{- if gt (int $v.engine.gpus) 0 }}
    nvidia.com/gpu: {{ $v.engine.gpus }}
    {{- end }}
{{ include "kvblend.containerSecurity" . }}
volumeMounts:
  {{- include "kvblend.sharedMounts" . | nindent 2 }}
{{- end }}
