{{/* Names, labels, and what several templates need. */}}

{{- define "understudy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for the suffixes of the objects, and for the ordinal and the hash that a StatefulSet appends. */}}
{{- define "understudy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "understudy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "understudy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "understudy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "understudy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: a dict with "root", and if it has them "name" or "suffix", "namespace" ("-" for none), "labels" and
"annotations". */}}
{{- define "understudy.metadata" -}}
{{- $root := .root -}}
name: {{ .name | default (printf "%s%s" (include "understudy.fullname" $root) (.suffix | default "")) }}
{{- if ne (.namespace | default "") "-" }}
namespace: {{ .namespace | default $root.Release.Namespace }}
{{- end }}
labels:
  {{- include "understudy.labels" $root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (dict) $root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "understudy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "understudy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "understudy.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "understudy.claim" -}}
{{- default (printf "%s-store" (include "understudy.fullname" .)) .Values.store.file.existingClaim -}}
{{- end -}}

{{/* A duration of the configuration in milliseconds. */}}
{{- define "understudy.milliseconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul $number (get (dict "ms" 1 "s" 1000 "m" 60000 "min" 60000) $unit | int64) -}}
{{- end -}}

{{- define "understudy.sambaNamespace" -}}
{{- .Values.nodes.statefulSet.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* The nodes, a line each: name, space, address. */}}
{{- define "understudy.nodes" -}}
{{- with .Values.nodes.statefulSet -}}
{{- if .name -}}
{{- $domain := printf "%s.%s.svc.%s" .service (include "understudy.sambaNamespace" $) $.Values.clusterDomain -}}
{{- range $at := until (int .replicas) }}
{{ $.Values.nodes.statefulSet.name }}-{{ $at }} {{ $.Values.nodes.statefulSet.name }}-{{ $at }}.{{ $domain }}:{{ $.Values.nodes.statefulSet.port }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.nodes.list }}
{{ .name }} {{ .address }}
{{- end -}}
{{- end -}}

{{/* The ports of all nodes, for the NetworkPolicy. */}}
{{- define "understudy.nodePorts" -}}
{{- $ports := list -}}
{{- range splitList "\n" (include "understudy.nodes" . | trim) -}}
{{- $ports = append $ports (splitList ":" . | last) -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | join " " -}}
{{- end -}}
