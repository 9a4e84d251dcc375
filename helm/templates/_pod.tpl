{{/* What the proxy's pod and the test's have in common. */}}

{{- define "understudy.secretMounts" -}}
{{- if .Values.credentials.smbpasswd.existingSecret }}
- name: smbpasswd
  mountPath: /etc/understudy/smbpasswd
  readOnly: true
{{- end }}
{{- if .Values.credentials.keytab.existingSecret }}
- name: keytab
  mountPath: /etc/understudy/keytab
  readOnly: true
{{- end }}
{{- end -}}

{{/* Whole directories, never a subPath: that is not brought up to date. The proxy refuses files that others may read. */}}
{{- define "understudy.secretVolumes" -}}
{{- range $name := list "smbpasswd" "keytab" }}
{{- with get $.Values.credentials $name }}
{{- if .existingSecret }}
- name: {{ $name }}
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where, and as whom, pods run. */}}
{{- define "understudy.podSettings" -}}
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "priorityClassName" "runtimeClassName" "schedulerName" "dnsPolicy" "dnsConfig" "hostAliases" }}
{{- with get $.Values $key }}
{{ $key }}:
  {{- if kindIs "string" . }} {{ . }}{{ else }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
