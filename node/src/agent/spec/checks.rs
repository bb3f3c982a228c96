//! Probes and hooks of a container, read from the API with every default filled in.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};

use crate::protocol::{Check, Hooks, HttpCheck, Probe, Probes};

/// What the API's defaults are; it fills them in, but an old object may lack them.
const TIMEOUT_S: i32 = 1;
const PERIOD_S: i32 = 10;
const SUCCESS_THRESHOLD: i32 = 1;
const FAILURE_THRESHOLD: i32 = 3;

/// The probes of a container. Ports by name are looked up in its declared ports.
pub fn probes(container: &core::Container) -> Probes {
    let read = |probe: &Option<core::Probe>| self::probe(probe.as_ref()?, container);
    Probes {
        startup: read(&container.startup_probe),
        liveness: read(&container.liveness_probe),
        readiness: read(&container.readiness_probe),
    }
}

fn probe(probe: &core::Probe, container: &core::Container) -> Option<Probe> {
    let check = if let Some(http) = &probe.http_get {
        self::http(http, container)
    } else if let Some(tcp) = &probe.tcp_socket {
        self::tcp(tcp, container)
    } else if let Some(grpc) = &probe.grpc {
        let service = grpc.service.clone().unwrap_or_default();
        Check::Grpc { port: u16::try_from(grpc.port).unwrap_or(0), service }
    } else {
        Check::Exec { command: probe.exec.as_ref()?.command.clone().unwrap_or_default() }
    };
    let at_least = |value: Option<i32>, default: i32, least: u32| {
        u32::try_from(value.filter(|value| *value != 0).unwrap_or(default)).unwrap_or(0).max(least)
    };
    Some(Probe {
        check,
        initial_delay_s: at_least(probe.initial_delay_seconds, 0, 0),
        timeout_s: at_least(probe.timeout_seconds, TIMEOUT_S, 1),
        period_s: at_least(probe.period_seconds, PERIOD_S, 1),
        success_threshold: at_least(probe.success_threshold, SUCCESS_THRESHOLD, 1),
        failure_threshold: at_least(probe.failure_threshold, FAILURE_THRESHOLD, 1),
        grace_s: probe
            .termination_grace_period_seconds
            .map(|seconds| u32::try_from(seconds).unwrap_or(0)),
    })
}

/// The hooks of a container.
pub fn hooks(container: &core::Container) -> Hooks {
    let Some(lifecycle) = &container.lifecycle else {
        return Hooks::default();
    };
    let read = |handler: &Option<core::LifecycleHandler>| hook(handler.as_ref()?, container);
    Hooks { post_start: read(&lifecycle.post_start), pre_stop: read(&lifecycle.pre_stop) }
}

fn hook(handler: &core::LifecycleHandler, container: &core::Container) -> Option<Check> {
    if let Some(http) = &handler.http_get {
        return Some(self::http(http, container));
    }
    if let Some(tcp) = &handler.tcp_socket {
        return Some(self::tcp(tcp, container));
    }
    if let Some(sleep) = &handler.sleep {
        return Some(Check::Sleep { seconds: u32::try_from(sleep.seconds).unwrap_or(0) });
    }
    Some(Check::Exec { command: handler.exec.as_ref()?.command.clone().unwrap_or_default() })
}

fn http(http: &core::HTTPGetAction, container: &core::Container) -> Check {
    let headers = http.http_headers.iter().flatten();
    Check::Http(HttpCheck {
        host: http.host.clone().filter(|host| !host.is_empty()),
        port: port(&http.port, container),
        path: http.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
        https: http.scheme.as_deref() == Some("HTTPS"),
        headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

fn tcp(tcp: &core::TCPSocketAction, container: &core::Container) -> Check {
    let host = tcp.host.clone().filter(|host| !host.is_empty());
    Check::Tcp { host, port: port(&tcp.port, container) }
}

/// A port that is not there becomes 0, at which a probe fails and says so.
fn port(port: &IntOrString, container: &core::Container) -> u16 {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_named_ports() {
        let container: core::Container = serde_json::from_str(
            r#"{"name":"app","ports":[{"name":"web","containerPort":8080}],
                "readinessProbe":{"httpGet":{"port":"web"}},
                "livenessProbe":{"tcpSocket":{"port":"nobody"},"periodSeconds":3},
                "startupProbe":{"exec":{"command":["healthy"]},"failureThreshold":30,
                                "terminationGracePeriodSeconds":5},
                "lifecycle":{"preStop":{"sleep":{"seconds":4}},
                             "postStart":{"exec":{"command":["warm"]}}}}"#,
        )
        .expect("a container");
        let probes = probes(&container);
        let readiness = probes.readiness.expect("a probe");
        assert_eq!(
            (readiness.timeout_s, readiness.period_s, readiness.failure_threshold),
            (1, 10, 3)
        );
        let Check::Http(http) = readiness.check else { panic!("http") };
        assert_eq!((http.port, http.path.as_str(), http.https), (8080, "/", false));
        let liveness = probes.liveness.expect("a probe");
        assert_eq!(liveness.check, Check::Tcp { host: None, port: 0 });
        assert_eq!(liveness.period_s, 3);
        let startup = probes.startup.expect("a probe");
        assert_eq!((startup.failure_threshold, startup.grace_s), (30, Some(5)));
        let hooks = hooks(&container);
        assert_eq!(hooks.pre_stop, Some(Check::Sleep { seconds: 4 }));
        assert_eq!(hooks.post_start, Some(Check::Exec { command: vec!["warm".to_owned()] }));
    }
}
