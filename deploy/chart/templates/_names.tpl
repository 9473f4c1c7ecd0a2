{{- define "kvblend.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "kvblend.labels" -}}
app.kubernetes.io/name: kvblend
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "kvblend.metadata" -}}
name: {{ include "kvblend.name" .root }}-{{ .component }}
labels:
  {{- include "kvblend.labels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Whether the chart runs an engine of its own. */}}
{{- define "kvblend.ownEngine" -}}
{{- if not .Values.externalEngines }}true{{ end -}}
{{- end }}

{{/* URL and control address of each engine, as arguments of `kvblend serve`. */}}
{{- define "kvblend.engines" -}}
{{- $name := include "kvblend.name" . -}}
{{- $engine := .Values.engine -}}
{{- if .Values.externalEngines }}
{{- range .Values.externalEngines }}
- --engine-url={{ .url }}
- --control={{ .control }}
{{- end }}
{{- else if eq .Values.layout "pod" }}
- --engine-url=http://127.0.0.1:{{ $engine.port }}
- --control=ipc:///run/kvblend/control.sock
{{- else if eq .Values.layout "hostPath" }}
- --engine-url=http://{{ $name }}-engine-0.{{ $name }}-engine:{{ $engine.port }}
- --control=ipc:///run/kvblend/control.sock
{{- else }}
{{- range $number := until (int $engine.replicas) }}
- --engine-url=http://{{ $name }}-engine-{{ $number }}.{{ $name }}-engine:{{ $engine.port }}
- --control=tcp://{{ $name }}-engine-{{ $number }}.{{ $name }}-engine:{{ $engine.controlPort }}
{{- end }}
{{- end }}
{{- end }}

{{/* Remote tiers' URLs, with spaces between them. */}}
{{- define "kvblend.remote" -}}
{{- $urls := .Values.tiers.remote -}}
{{- if .Values.valkey.enabled -}}
{{- $urls = prepend $urls (printf "redis://%s-valkey:6379/0" (include "kvblend.name" .)) -}}
{{- end -}}
{{- join " " $urls -}}
{{- end }}
