"""The example configuration; deploy/config.example.yaml holds the same text, and a test compares the two."""

from __future__ import annotations

TEXT = """\
# Wattbalance: an example configuration with one pool on-prem and one in a cloud.
# Durations carry their unit (250ms, 30s, 4h30m). What is left out has its default; only `cluster.name` and
# `telemetry.broker` have none. Check a file: wattbalance check-config FILE

# act, or observe: decide, explain and count everything, and change nothing. Start with observe.
mode: act

cluster:
  name: prod                     # part of every MQTT topic
  kubeconfig: null               # null: the pod's service account
  stale: 60s                     # not ready once the API server was silent for this long
  api_timeout: 5s

telemetry:
  broker: mqtts://mosquitto.wattbalance.svc:8883
  ca_file: /etc/wattbalance/broker/ca.crt
  cert_file: /etc/wattbalance/broker/tls.crt
  key_file: /etc/wattbalance/broker/tls.key
  # Instead of a client certificate; the files hold nothing else.
  # username_file: /etc/wattbalance/broker/username
  # password_file: /etc/wattbalance/broker/password
  stale: 10s                     # an older reading is unknown
  half_life: 5s                  # how fast measured load forgets
  neutral_load: 0.5              # assumed of a free GPU whose reading is unknown
  wait_at_start: 10s             # then serve without readings

# The order is the order of preference. A node that two selectors take gets no GPU pod until one of them is left, one
# that none takes is in pool `default`, last. Two selectors of which one contains the other are refused.
pools:
  - name: dc-1
    kind: on-prem                # on-prem, cloud, edge or partner; for people, decides nothing
    selector: {site: dc-1}
    spill: {after: 5m}           # a pod waits this long for dc-1 before the later pools open to it
  - name: aws-a
    kind: cloud
    selector: {site: aws-a}
    # mode: observe              # act elsewhere, and only observe here (docs/adr/0010-observed-pools.md)

# decisive: the extender's filter returns the one chosen node. advisory: it scores, kube-scheduler chooses.
profiles:
  training:
    placement: decisive
    expected_load: 0.9           # how busy such a pod keeps each of its GPUs, 0 to 1
    policies: {pack: {weight: 3}, least-loaded: {weight: 1}, image: {weight: 0.25}}
  inference:
    placement: decisive
    expected_load: 0.4
    policies: {least-loaded: {weight: 3}, freshness: {weight: 1}, spread: {weight: 1}, image: {weight: 0.25}}
  batch:
    placement: decisive
    expected_load: 0.9
    policies: {pack: {weight: 3}, least-loaded: {weight: 1}, image: {weight: 0.25}}

# All filters are on; this turns one off.
filters: {}                      # {quarantine: off}

# What a pod is if neither its annotations nor its owner tell.
workload:
  default: batch
  priority_classes: {}           # {online: inference}

# Annotations of pods that say nothing, nor do their owners or their namespace (docs/annotations.md).
annotations: {}                  # {expected-duration: 4h}

# What the pods of a namespace may ask for; the first entry that matches counts, and a key that is not named is free.
# Who asks for nothing is held to the pools and GPU models allowed, and to the workloads.
namespaces: []                   # [{match: "team-*", allow: {pools: [dc-1], workload: [batch, training]}}]

# The extender is open to other machines only with client certificates, the api never (kubectl port-forward).
listeners:
  - address: 0.0.0.0:9443
    serves: [extender]
    tls:
      cert_file: /etc/wattbalance/tls/tls.crt
      key_file: /etc/wattbalance/tls/tls.key
      client_ca_file: /etc/wattbalance/tls/ca.crt
  - {address: "0.0.0.0:9440", serves: [metrics, probes]}
  - {address: "127.0.0.1:9441", serves: [api]}

# As in kube-scheduler's configuration.
extender:
  prefix: /scheduler
  bind: false
  reservation: 30s               # how long a choice holds its GPUs until the binding is seen
  annotate: true                 # write the decision on pods that kube-scheduler bound by it
  annotations_per_second: 20     # at most, newest first; each is a write to the API server
  kubernetes_version: null       # "1.32", in quotes; check-config warns if bind with ignorable lacks it
  ignorable: null                # null: not known

# A pod that we refused for what Kubernetes cannot see (a pool, a quarantine, a broken GPU) is woken once it fits.
nudge:
  enabled: true
  most_per_second: 10            # each is a write to the API server
  again: 10s                     # one pod at most once in this time

# One of several replicas writes; all of them answer.
lease:
  enabled: true
  name: wattbalance
  namespace: null                # null: the pod's own
  duration: 15s
  renew_deadline: 10s
  retry: 2s
  identity: null                 # null: the pod's name

# Relative speed, by a glob on the GPU's model name; the first match counts, others are 1.
models:
  "*H100*": {capability: 3.0}
  "*A100*": {capability: 1.5}

scheduler_names: [wattbalance]   # pods of these schedulers should come past us
# Pods that ask for one of these are counted if they come past us; none named: all that are GPUs, shared ones or slices.
managed_resources: []            # as managedResources of a scheduler that others share
gpu_resources: []                # further names of GPUs, as a device plugin's rename gives them: example.com/a100

log:
  level: info                    # debug, info, warning or error
  format: json                   # or text

shutdown:
  grace: 10s                     # keep it below terminationGracePeriodSeconds
"""
