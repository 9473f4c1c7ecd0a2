{{/* What every pod of the chart has: nobody is root, nothing may become it, no token of the cluster's API. */}}
{{- define "kvblend.podSecurity" -}}
automountServiceAccountToken: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "kvblend.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "kvblend.image" -}}
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "kvblend.secretEnv" -}}
{{- if .secret.name -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret.name }}
      key: {{ .secret.key }}
{{- end }}
{{- end }}

{{/* Where tiers lie and how large they are: cpuBytes and diskBytes differ between the pods of layout remote. */}}
{{- define "kvblend.storeEnv" -}}
{{- $v := .root.Values -}}
- name: KVBLEND_CPU_BYTES
  value: {{ mul .cpuGiB 1073741824 | quote }}
- name: KVBLEND_DISK_BYTES
  value: {{ mul .diskGiB 1073741824 | quote }}
{{- if eq $v.layout "hostPath" }}
- name: KVBLEND_CPU_PATH
  value: /mnt/kvblend/cpu
- name: KVBLEND_DISK_PATH
  value: /mnt/kvblend/disk
{{- end }}
{{- if eq $v.layout "remote" }}
- name: KVBLEND_WRITE
  value: remote
{{- end }}
{{- with include "kvblend.remote" .root }}
- name: KVBLEND_REMOTE
  value: {{ . | quote }}
{{- end }}
{{- with include "kvblend.secretEnv" (dict "name" "KVBLEND_REMOTE_PASSWORD" "secret" $v.secrets.remotePassword) }}
{{- nindent 0 . }}
{{- end }}
{{- with include "kvblend.secretEnv" (dict "name" "HF_TOKEN" "secret" $v.secrets.huggingFaceToken) }}
{{- nindent 0 . }}
{{- end }}
{{- range $name, $value := $v.settings }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- with $v.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- define "kvblend.envFrom" -}}
{{- with .Values.envFrom -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- end }}

{{- define "kvblend.sharedMounts" -}}
- name: home
  mountPath: /var/lib/kvblend
- name: shm
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
{{- if ne .Values.layout "remote" }}
- name: control
  mountPath: /run/kvblend
{{- end }}
{{- if eq .Values.layout "hostPath" }}
- name: cpu-tier
  mountPath: /mnt/kvblend/cpu
- name: disk-tier
  mountPath: /mnt/kvblend/disk
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- define "kvblend.sharedVolumes" -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ ternary 1 (int .Values.tiers.shmGiB) (eq .Values.layout "hostPath") }}Gi
- name: tmp
  emptyDir: {}
{{- if eq .Values.layout "pod" }}
- name: control
  emptyDir: {}
{{- end }}
{{- if eq .Values.layout "hostPath" }}
- name: control
  hostPath:
    path: {{ .Values.tiers.hostPath.control }}
    type: Directory
- name: cpu-tier
  hostPath:
    path: {{ .Values.tiers.hostPath.cpu }}
    type: Directory
- name: disk-tier
  hostPath:
    path: {{ .Values.tiers.hostPath.disk }}
    type: Directory
{{- end }}
{{- with .Values.extraVolumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
