{{- define "egret.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "egret.labels" -}}
app.kubernetes.io/name: egret
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
