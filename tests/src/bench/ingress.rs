//! The gate beside Debian's nginx and haproxy on the same machine, all of them with two threads of
//! work: TLS in front of a handler's node port, and a plain proxy before a server outside of the
//! cluster (another nginx, which answers from memory). All of them write an access log and tell the
//! server behind who asked, as a gate does.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use wherry_tests::machine::own_address;
use wherry_tests::{Dev, signal, text, wait_for};

use crate::Rows;
use crate::apps::{Load, wrk_for};

const HELLO: u16 = 30080;
const CONNECTIONS: u32 = 32;
const ROUNDS: usize = 3;
const SAFE: &str = "safe.example";
const PLAIN: &str = "plain.example";

/// An Ingress for both, and the server outside as a Service with an address written by hand.
const MANIFEST: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bench}
spec:
  tls: [{hosts: [safe.example], secretName: bench-tls}]
  rules:
    - host: safe.example
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: hello-http, port: {number: 80}}}}]}
    - host: plain.example
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: outside, port: {number: 80}}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-1, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
ports: [{name: "", port: @ORIGIN_PORT@, protocol: TCP}]
endpoints: [{addresses: ["@ORIGIN_IP@"], conditions: {ready: true}}]
"#;

const ORIGIN: &str = r#"
user root;
daemon off;
pid @DIR@/origin.pid;
worker_processes 1;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path @DIR@/origin-body;
  proxy_temp_path @DIR@/origin-proxy;
  fastcgi_temp_path @DIR@/origin-fastcgi;
  uwsgi_temp_path @DIR@/origin-uwsgi;
  scgi_temp_path @DIR@/origin-scgi;
  server { listen @ORIGIN@; location / { return 200 "Hello from outside\n"; } }
}
"#;

const NGINX: &str = r#"
user root;
daemon off;
pid @DIR@/nginx.pid;
worker_processes 2;
events { worker_connections 4096; }
http {
  access_log @DIR@/access.log combined buffer=64k flush=1s;
  keepalive_requests 100000000;
  client_body_temp_path @DIR@/nginx-body;
  proxy_temp_path @DIR@/nginx-proxy;
  fastcgi_temp_path @DIR@/nginx-fastcgi;
  uwsgi_temp_path @DIR@/nginx-uwsgi;
  scgi_temp_path @DIR@/nginx-scgi;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Host $host;
  proxy_set_header X-Forwarded-Proto $scheme;
  upstream handler { server @HANDLER@; keepalive 64; keepalive_requests 100000000; }
  upstream outside { server @ORIGIN@; keepalive 64; keepalive_requests 100000000; }
  server {
    listen @TLS@ ssl;
    ssl_certificate @DIR@/tls.crt;
    ssl_certificate_key @DIR@/tls.key;
    location / { proxy_pass http://handler; }
  }
  server { listen @PLAIN@; location / { proxy_pass http://outside; } }
}
"#;

const HAPROXY: &str = r#"
global
  nbthread 2
  maxconn 4096
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option forwardfor
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend safe
  bind @TLS@ ssl crt @DIR@/both.pem
  default_backend handler
frontend plain
  bind @PLAIN@
  default_backend outside
backend handler
  server handler @HANDLER@
backend outside
  server outside @ORIGIN@
"#;

/// Somebody else's server, which ends with its scope, and its workers with it.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        signal(self.0.id().cast_signed(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

pub fn ingress(rows: &mut Rows) -> Result<()> {
    // Endpoints may not be on loopback.
    let own = own_address().context("this part needs an address of the machine but loopback")?;
    let cluster = Dev::start();
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    certificate(&cluster, folder)?;
    let origin = free(own)?;
    let words = |text: &str, (tls, plain): (SocketAddr, SocketAddr)| {
        text.replace("@DIR@", &folder.display().to_string())
            .replace("@ORIGIN_PORT@", &origin.port().to_string())
            .replace("@ORIGIN_IP@", &origin.ip().to_string())
            .replace("@ORIGIN@", &origin.to_string())
            .replace("@HANDLER@", &format!("{}:{HELLO}", cluster.address))
            .replace("@TLS@", &tls.to_string())
            .replace("@PLAIN@", &plain.to_string())
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let places = || -> Result<_> { Ok((free(loopback)?, free(loopback)?)) };
    let (gate, nginx, haproxy) = (
        (SocketAddr::from((cluster.address, 443)), SocketAddr::from((cluster.address, 80))),
        places()?,
        places()?,
    );
    cluster.kubectl_ok(&["apply", "-f", "sample-apps/hello-http/app.yaml"]);
    let manifest = folder.join("bench.yaml");
    fs::write(&manifest, words(MANIFEST, gate))?;
    cluster.kubectl_ok(&["apply", "-f", &manifest.to_string_lossy()]);
    cluster.kubectl_ok(&["rollout", "status", "deployment/hello-http", "--timeout=60s"]);
    let start = |program: &str, name: &str, option: &str, config: String| -> Result<Proxy> {
        let file = folder.join(name);
        fs::write(&file, config)?;
        let mut command = Command::new(program);
        if program.ends_with("haproxy") {
            command.arg("-db");
        }
        let log = fs::File::create(folder.join(format!("{name}.log")))?;
        let child = command.arg(option).arg(&file).stdin(Stdio::null()).stdout(log).spawn();
        Ok(Proxy(child.with_context(|| format!("{program} is installed by `make bench`"))?))
    };
    let _origin = start("/usr/sbin/nginx", "origin.conf", "-c", words(ORIGIN, gate))?;
    let _nginx = start("/usr/sbin/nginx", "nginx.conf", "-c", words(NGINX, nginx))?;
    let _haproxy = start("/usr/sbin/haproxy", "haproxy.cfg", "-f", words(HAPROXY, haproxy))?;
    let servers = [("wherry", gate), ("nginx", nginx), ("haproxy", haproxy)];
    for (group, host, path) in
        [("TLS before a handler", SAFE, "/bench"), ("proxy to a server outside", PLAIN, "/")]
    {
        let url = |(tls, plain): (SocketAddr, SocketAddr)| match host {
            SAFE => format!("https://{tls}{path}"),
            _ => format!("http://{plain}{path}"),
        };
        for (name, places) in servers {
            wait_for(name, || is_fine(host, &url(places)).then_some(()));
        }
        let mut loads: [Vec<Load>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for ((_, places), loads) in servers.into_iter().zip(&mut loads) {
                loads.push(wrk_for(Some(host), &url(places), CONNECTIONS)?);
            }
        }
        let group = format!("{group}, {CONNECTIONS} connections");
        let loads = loads.map(|rounds| Load::median(&rounds));
        for ((name, _), load) in servers.iter().zip(&loads) {
            rows.add(&group, &format!("{name}: throughput"), load.per_second, "req/s");
            rows.add(&group, &format!("{name}: p50"), load.p50_ms, "ms");
            rows.add(&group, &format!("{name}: p99"), load.p99_ms, "ms");
        }
        let [wherry, nginx, haproxy] = loads.map(|load| load.per_second);
        rows.add(&group, "the better of the others / wherry", nginx.max(haproxy) / wherry, "×");
    }
    Ok(())
}

/// One request, whose answer must be 200.
fn is_fine(host: &str, url: &str) -> bool {
    let output = Command::new("curl")
        .args(["-sk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(["-H", &format!("Host: {host}"), url])
        .output();
    output.is_ok_and(|output| text(&output.stdout) == "200")
}

/// A certificate for all three: as a Secret, and as the files that the others want.
fn certificate(cluster: &Dev, folder: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![SAFE.to_owned()])?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(folder.join("tls.crt"), &certificate)?;
    fs::write(folder.join("tls.key"), &key)?;
    fs::write(folder.join("both.pem"), certificate + &key)?;
    let file = |name: &str| folder.join(name).display().to_string();
    let (cert, key) = (format!("--cert={}", file("tls.crt")), format!("--key={}", file("tls.key")));
    let output = cluster.kubectl(&["create", "secret", "tls", "bench-tls", &cert, &key]);
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(())
}

/// A place that was free a moment ago.
fn free(ip: IpAddr) -> Result<SocketAddr> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?)
}
