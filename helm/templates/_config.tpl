{{/* understudy.toml. JSON strings are TOML strings. */}}
{{- define "understudy.config" -}}
{{- $c := .Values.config -}}
listen = {{ include "understudy.listen" . | toJson }}
takeover_deadline = {{ $c.takeoverDeadline | toJson }}
grace_park = {{ $c.gracePark | toJson }}
grace = {{ $c.grace | toJson }}
shutdown_grace = {{ $c.shutdownGrace | toJson }}
leg_losses_per_minute = {{ int $c.legLossesPerMinute }}
{{- with int $c.workers }}
workers = {{ . }}
{{- end }}
{{- include "understudy.config.found" . }}
{{- range splitList "\n" (include "understudy.nodes" . | trim) | compact }}
{{- $node := splitList " " . }}

[[nodes]]
name = {{ first $node | toJson }}
address = {{ last $node | toJson }}
{{- end }}
{{ include "understudy.config.credentials" . }}
[store]
{{ include "understudy.config.store" . }}
{{ include "understudy.config.ha" . }}
[fence]
{{- with .Values.fence.exec }}
exec = {{ toJson . }}
{{- end }}
{{- if .Values.fence.kubernetes.enabled }}
kubernetes = {{ include "understudy.sambaNamespace" . | toJson }}
{{- end }}
timeout = {{ .Values.fence.timeout | toJson }}
unfenced_silence = {{ .Values.fence.unfencedSilence }}

[health]
probe_interval = {{ $c.health.probeInterval | toJson }}
silence_after = {{ $c.health.silenceAfter | toJson }}

[clients]
first_frame = {{ $c.clients.firstFrame | toJson }}
half_frame = {{ $c.clients.halfFrame | toJson }}

[side_channel]
open = {{ $c.sideChannel.open | toJson }}
stuck_after = {{ $c.sideChannel.stuckAfter | toJson }}

[admin]
listen = {{ printf "%s:%v" .Values.listenAddress .Values.ports.admin | toJson }}

[log]
format = {{ $c.log.format | toJson }}
level = {{ $c.log.level | toJson }}
{{- end -}}

{{/* By what nodes are found that are not listed. */}}
{{- define "understudy.config.found" -}}
{{- $slices := .Values.nodes.endpointSlices -}}
{{- if $slices.service }}

[nodes]
endpoint_slices = { namespace = {{ include "understudy.sambaNamespace" . | toJson }}, service = {{ toJson $slices.service }}, port = {{ int $slices.port }} }
{{- end }}
{{- with .Values.nodes.dns }}

[nodes]
dns = {{ toJson . }}
{{- end }}
{{- end -}}

{{/* Who may be acted for, and by whom volumes are compared. */}}
{{- define "understudy.config.credentials" -}}
{{- $smbpasswd := .Values.credentials.smbpasswd -}}
{{- $keytab := .Values.credentials.keytab -}}
{{- if or $smbpasswd.existingSecret $keytab.existingSecret }}
[credentials]
{{- if $smbpasswd.existingSecret }}
ntlm = {{ printf "/etc/understudy/smbpasswd/%s" $smbpasswd.key | toJson }}
{{- end }}
{{- if $keytab.existingSecret }}
keytab = {{ printf "/etc/understudy/keytab/%s" $keytab.key | toJson }}
{{- end }}
{{ end }}
{{- with .Values.config.compare }}
{{- if .user }}
[compare]
user = {{ .user | toJson }}
shares = {{ toJson .shares }}
{{ end }}
{{- end }}
{{- end -}}

{{/* Where state is kept. */}}
{{- define "understudy.config.store" -}}
{{- with .Values.store.etcd -}}
{{- if .endpoints -}}
url = {{ printf "etcd%s://%s" (empty .tls.existingSecret | ternary "" "s") (join "," .endpoints) | toJson }}
prefix = {{ .prefix | default (printf "/understudy/%s/%s/" $.Release.Namespace (include "understudy.fullname" $)) | toJson }}
timeout = {{ .timeout | toJson }}
{{- if .tls.existingSecret }}
ca = {{ printf "/etc/understudy/etcd-tls/%s" .tls.ca | toJson }}
{{- if .tls.cert }}
cert = {{ printf "/etc/understudy/etcd-tls/%s" .tls.cert | toJson }}
key = {{ printf "/etc/understudy/etcd-tls/%s" .tls.key | toJson }}
{{- end }}
{{- end }}
{{- if .auth.existingSecret }}
user = {{ .auth.user | toJson }}
password_file = {{ printf "/etc/understudy/etcd-auth/%s" .auth.key | toJson }}
{{- end }}
{{- else -}}
url = "file:/var/lib/understudy"
{{- end -}}
{{- end }}
on_store_failure = {{ .Values.store.onFailure | toJson }}
{{- end -}}

{{/* Which of several proxies serves, and how clients come to it. */}}
{{- define "understudy.config.ha" -}}
{{- if .Values.store.etcd.endpoints }}
[ha]
name = "$POD_NAME"
heartbeat = "$POD_IP:{{ .Values.ports.heartbeat }}"
lease = {{ .Values.config.ha.lease | toJson }}
silence = {{ .Values.config.ha.silence | toJson }}
confirm = {{ .Values.config.ha.confirm | toJson }}
{{- if include "understudy.isByLabel" . }}
kubernetes = {{ .Release.Namespace | toJson }}
selector = {{ include "understudy.selector" . | toJson }}
{{- end }}
{{ end }}
{{- if eq .Values.vip.mode "own" }}
[vip]
address = {{ toJson .Values.vip.addresses }}
interface = {{ .Values.vip.interface | toJson }}
{{ end }}
{{- end -}}

{{/* What the test's pod checks: the clients' address as if it were a node. */}}
{{- define "understudy.test.config" -}}
listen = "127.0.0.1:{{ .Values.ports.smb }}"

[[nodes]]
name = "service"
address = {{ include "understudy.address" . | toJson }}
{{ include "understudy.config.credentials" . }}
[store]
url = "memory:"
{{- end -}}
