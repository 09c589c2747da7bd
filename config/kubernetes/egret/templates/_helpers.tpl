{{- define "egret.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "egret.labels" -}}
app.kubernetes.io/name: egret
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Where agents and controller answer: the defaults of `egret --admin`, which a test keeps equal. */}}
{{- define "egret.adminPort" -}}15000{{- end }}
{{/* Where agents do so at the node's address, read only. */}}
{{- define "egret.statusPort" -}}15020{{- end }}
