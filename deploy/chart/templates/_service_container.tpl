{{- define "kvblend.serviceContainer" -}}
{{- $v := .Values -}}
name: service
{{ include "kvblend.image" . }}
args:
  - serve
  - {{ $v.model | quote }}
  - --host=0.0.0.0
  - --port={{ $v.service.port }}
  {{- include "kvblend.engines" . | trim | nindent 2 }}
  {{- range $v.service.args }}
  - {{ . | quote }}
  {{- end }}
{{ include "kvblend.envFrom" . -}}
env:
  {{- include "kvblend.storeEnv" (dict "root" . "cpuGiB" (ternary 0 (int $v.tiers.cpuGiB) (eq $v.layout "remote")) "diskGiB" (int $v.tiers.diskGiB)) | nindent 2 }}
  {{- with include "kvblend.secretEnv" (dict "name" "KVBLEND_API_KEY" "secret" $v.secrets.apiKey) }}
  {{- nindent 2 . }}
  {{- end }}
  {{- with include "kvblend.secretEnv" (dict "name" "KVBLEND_ENGINE_API_KEY" "secret" $v.secrets.engineApiKey) }}
  {{- nindent 2 . }}
  {{- end }}
  {{- if $v.secrets.keys.name }}
  - name: KVBLEND_KEYS
    value: /etc/kvblend/keys/keys.yaml
  {{- end }}
  {{- with $v.tracing.endpoint }}
  - name: OTEL_EXPORTER_OTLP_ENDPOINT
    value: {{ . | quote }}
  - name: OTEL_EXPORTER_OTLP_PROTOCOL
    value: {{ $v.tracing.protocol }}
  {{- end }}
  - name: OMP_NUM_THREADS
    value: {{ $v.service.cpus | quote }}
ports:
  - name: http
    containerPort: {{ $v.service.port }}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 5
  failureThreshold: {{ mul 12 $v.engine.startMinutes }}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 8
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 8
# Routers and proxies hear that the pod goes before the service stops to take requests.
lifecycle:
  preStop:
    sleep: {seconds: 3}
resources:
  requests: {cpu: {{ $v.service.cpus }}, memory: {{ $v.service.memoryGiB }}Gi}
  limits: {memory: {{ add $v.service.memoryGiB (ternary (int $v.tiers.shmGiB) 1 (eq $v.layout "pod")) }}Gi}
{{ include "kvblend.containerSecurity" . }}
volumeMounts:
  {{- include "kvblend.sharedMounts" . | nindent 2 }}
  {{- if $v.secrets.keys.name }}
  - name: keys
    mountPath: /etc/kvblend/keys
    readOnly: true
  {{- end }}
{{- end }}
