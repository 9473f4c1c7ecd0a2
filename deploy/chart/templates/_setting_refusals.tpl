{{/* Numbers among the settings that are out of their bounds: files/setting_bounds.yaml. */}}
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
{{- end }}
