{{/* What all pods have: their security, their spread, their wait for a checkpoint. */}}

{{- define "kimi-serve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "kimi-serve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Pods of a component apart from each other, where that is possible. Takes (root, component). */}}
{{- define "kimi-serve.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "kimi-serve.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* Waits until a model's download is whole. Takes (root, model, image). */}}
{{- define "kimi-serve.await" -}}
- name: await-checkpoint
  image: {{ index . 2 | quote }}
  imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
  command: [sh, -c, 'until [ -e "$0/.complete" ]; do sleep 5; done', {{ (index . 1).checkpoint | quote }}]
  securityContext:
    {{- include "kimi-serve.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - {name: store, mountPath: /models, readOnly: true}
{{- end }}
