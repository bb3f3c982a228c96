//! Everything that a container start needs, gathered: code, environment, arguments.
//!
//! Runs as one short task for each start. It reads the registry and the API and runs the compiler; it
//! decides nothing: its outcome goes back to the loop. Pulls and compilers have bounds of their own
//! (`images`); what comes after them has one here, so that a slow registry holds up nobody whose
//! image is there.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use tokio::sync::{Semaphore, mpsc};

use crate::{compile::Image, protocol};

use super::{
    env,
    events::Recorder,
    facts::Took,
    images::{Found, Images},
    lifecycle::{Observation, Problem, UNMOUNTED},
    objects::Objects,
    pods::Input,
    routes::ServiceInfo,
    spec::{ContainerSpec, EnvFile, PodSpec},
    volumes::Volumes,
};

/// Starts that read their objects and make their volumes at the same time.
const PREPARE_MAX: usize = 64;

/// Prepares container starts.
pub struct Preparer {
    objects: Arc<Objects>,
    images: Arc<Images>,
    volumes: Arc<Volumes>,
    events: Recorder,
    inputs: mpsc::Sender<Input>,
    host_ip: IpAddr,
    permits: Semaphore,
}

/// One start to prepare.
pub struct Order {
    /// The Pod.
    pub pod: Arc<PodSpec>,
    /// Which container.
    pub index: usize,
    /// Which start.
    pub restart: u32,
    /// The Pod's address.
    pub ip: IpAddr,
    /// Services that give it variables.
    pub services: Vec<ServiceInfo>,
}

impl Preparer {
    /// Made once.
    pub fn new(
        objects: Arc<Objects>,
        images: Arc<Images>,
        volumes: Arc<Volumes>,
        events: Recorder,
        inputs: mpsc::Sender<Input>,
        host_ip: IpAddr,
    ) -> Preparer {
        let permits = Semaphore::new(PREPARE_MAX);
        Preparer { objects, images, volumes, events, inputs, host_ip, permits }
    }

    /// Prepares one start and reports `Prepared` or `Failed`.
    pub async fn run(self: Arc<Preparer>, order: Order) {
        let outcome = self.prepare(&order).await;
        let (uid, container) = (order.pod.uid.clone(), order.index);
        let input = match outcome {
            Ok((start, image, took)) => {
                let facts = Box::new((image, took));
                Input::Prepared { uid, container, start: Box::new(start), facts }
            }
            Err(problem) => {
                let reason = event_of(problem.reason);
                let image = &order.pod.containers[container].image;
                let message = in_words(&problem, image);
                // Volumes are the Pod's.
                match problem.reason {
                    UNMOUNTED => self.events.warning_of_pod(&order.pod, reason, message),
                    _ => self.events.warning(&order.pod, container, reason, message),
                }
                if problem.reason == "ErrImagePull" {
                    let message = format!("Back-off pulling image {image:?}");
                    self.events.normal(&order.pod, container, "BackOff", message);
                }
                Input::Observed { uid, observation: Observation::Failed { container, problem } }
            }
        };
        // The loop is gone only when the agent ends.
        let _ = self.inputs.send(input).await;
    }

    /// Has code made for this agent's engine that a container needs which runs in a worker of another
    /// one. Says whether it is there now.
    pub async fn compile_ahead(&self, pod: &PodSpec, index: usize) -> bool {
        let container = &pod.containers[index];
        let found = self.images.resolve(pod, &container.image, container.pull, || {}).await;
        let compiled = match found {
            Ok(found) if self.images.compiled(&found).is_some() => Ok(()),
            Ok(found) => self.images.compile(&found, &container.image).await.map(drop),
            Err(problem) => Err(problem),
        };
        // Probes, hooks and `kubectl exec` may want it.
        self.images.toolbox_code().await;
        let Err(problem) = compiled else { return true };
        let message = format!(
            "{}; the container goes on in its worker process of before the node's upgrade",
            in_words(&problem, &container.image)
        );
        self.events.warning(pod, index, event_of(problem.reason), message);
        false
    }

    async fn prepare(&self, order: &Order) -> Result<(protocol::Container, Image, Took), Problem> {
        let (pod, index) = (&order.pod, order.index);
        let container = &pod.containers[index];
        let began = Instant::now();
        let asks = || {
            let message = format!("Pulling image {:?}", container.image);
            self.events.normal(pod, index, "Pulling", message);
        };
        let found = self.images.resolve(pod, &container.image, container.pull, asks).await?;
        let pull = began.elapsed();
        self.events.normal(pod, index, "Pulled", got(&found, &container.image));
        let alias = self.images.alias(&container.image);
        if alias.is_some() {
            let message = format!(
                "{} holds programs that cannot run as Wasm; this node's image aliases run the \
                 built-in toolbox instead ({})",
                container.image, found.id
            );
            self.events.normal(pod, index, "ImageAliased", message);
        }
        let begun = Instant::now();
        let image = match self.images.compiled(&found) {
            Some(image) => image,
            None => {
                let (uid, observation) = (pod.uid.clone(), Observation::Compiling(index));
                let _ = self.inputs.send(Input::Observed { uid, observation }).await;
                let image = self.images.compile(&found, &container.image).await?;
                let what = match image.guest {
                    protocol::Guest::Command => "command",
                    protocol::Guest::Handler => "HTTP handler",
                };
                let form = match image.form {
                    protocol::Form::Module => "WASI p1 module",
                    protocol::Form::Component => "component",
                };
                let message = format!("Compiled {}: a {form}, {what}", container.image);
                self.events.normal(pod, index, "Compiled", message);
                image
            }
        };
        let toolbox = match alias.is_none() && calls_beyond(container, &image) {
            true => self.images.toolbox_code().await,
            false => None,
        };
        let compile = begun.elapsed();
        if let Some(limit) = container.limits.memory_bytes
            && limit < image.memory_min_bytes
        {
            return Err(Problem {
                reason: "CreateContainerConfigError",
                message: format!(
                    "the memory limit of {limit} bytes is below the {} bytes that {} starts with; \
                     raise resources.limits.memory",
                    image.memory_min_bytes, container.image
                ),
            });
        }
        let begun = Instant::now();
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let queue = begun.elapsed();
        let began = Instant::now();
        let (env, mut args) = self.environment(order).await?;
        let volumes =
            self.volumes.prepare(pod, index, order.ip, &env, (image.guest, alias.is_some()));
        let (mut mounts, last_words) = volumes.await?;
        if let Some(alias) = alias {
            args = alias.argv(!container.command.is_empty(), args);
            mounts = self.volumes.with_root(pod, index, order.ip, mounts).await?;
        }
        self.volumes.settle(pod, &mounts).await?;
        let took = Took { queue, pull, compile, prepare: began.elapsed() };
        let start = protocol::Container {
            name: container.name.clone(),
            restart: order.restart,
            module: self.images.code(&found),
            form: image.form,
            guest: image.guest,
            image_id: found.id,
            cwd: container.cwd.clone(),
            args,
            env,
            limits: container.limits.clone(),
            ports: container.ports.clone(),
            mounts,
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
            probes: container.probes.clone(),
            hooks: container.hooks.clone(),
            toolbox,
            last_words,
        };
        Ok((start, image, took))
    }

    async fn environment(&self, order: &Order) -> Result<(protocol::Env, Vec<String>), Problem> {
        let pod = &order.pod;
        let mut objects = BTreeMap::new();
        for source in env::sources(&pod.containers[order.index]) {
            let content =
                self.objects.get(&pod.namespace, &source).await.map_err(|error| Problem {
                    reason: "CreateContainerConfigError",
                    message: format!("cannot read {source:?}: {error}"),
                })?;
            objects.insert(source, content);
        }
        let mut files = BTreeMap::new();
        for file in env::files(&pod.containers[order.index]) {
            let EnvFile { volume, path } = &file;
            let text = self.volumes.env_file(pod, &file).await.map_err(|why| Problem {
                reason: "CreateContainerConfigError",
                message: format!("cannot read file {path:?} of volume {volume:?}: {why}"),
            })?;
            files.insert(file, text);
        }
        let context = env::Context {
            services: &order.services,
            objects: &objects,
            files: &files,
            ..env::Context::defaults(order.ip, self.host_ip)
        };
        env::build(pod, order.index, &context).map_err(|error| Problem {
            reason: "CreateContainerConfigError",
            message: error.to_string(),
        })
    }
}

/// Whether a probe or a hook calls something else than an export of the image.
fn calls_beyond(container: &ContainerSpec, image: &Image) -> bool {
    let probes = protocol::ProbeKind::ALL.into_iter().filter_map(|kind| container.probes.get(kind));
    let hooks = [&container.hooks.post_start, &container.hooks.pre_stop].into_iter().flatten();
    probes.map(|probe| &probe.check).chain(hooks).any(|check| {
        let protocol::Check::Exec { command } = check else {
            return false;
        };
        command.first().is_some_and(|name| !image.exports.contains(name))
    })
}

/// How the image came to be here.
fn got(found: &Found, image: &str) -> String {
    if found.pulled {
        return format!(
            "Successfully pulled image {image:?} ({}, {} bytes)",
            found.id, found.bytes
        );
    }
    format!("Container image {image:?} already present on machine")
}

/// The event's sentence, which begins as a kubelet's where one has it.
fn in_words(problem: &Problem, image: &str) -> String {
    let message = &problem.message;
    match problem.reason {
        "ErrImagePull" => format!("Failed to pull image {image:?}: {message}"),
        "CreateContainerError" | "CreateContainerConfigError" => format!("Error: {message}"),
        _ => message.clone(),
    }
}

/// The reason of the event, as a kubelet has it, for a problem with this reason in the status. Those
/// of Wasm alone are the same in both.
fn event_of(reason: &'static str) -> &'static str {
    match reason {
        "ErrImagePull" | "CreateContainerError" | "CreateContainerConfigError" => "Failed",
        "InvalidImageName" => "InspectFailed",
        UNMOUNTED => "FailedMount",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use crate::agent::{
        away::Away, checkpoint::Checkpoint, images::Thresholds, spec, users::Users,
    };

    use super::*;

    #[tokio::test]
    async fn starts_that_wait_for_their_images_hold_up_nobody_else() {
        let never = |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        };
        let client = kube::Client::new(tower::service_fn(never), "default");
        let disk = tempfile::tempdir().expect("a folder");
        let root = disk.path();
        let away = Arc::new(Away::default());
        let (events, _happenings) = Recorder::new();
        let images = Images::open(
            (client.clone(), away.clone(), events.clone()),
            root.join("images"),
            "engine".to_owned(),
            root.join("no-compiler"),
            (false, Thresholds { high: 85, low: 80 }),
        );
        let images = Arc::new(images.expect("a folder of images"));
        let checkpoint = Checkpoint::open(root, None).expect("a checkpoint");
        let objects = Arc::new(Objects::new(client.clone(), checkpoint, away));
        let users = Arc::new(Users::open(root, root.join("logs"), None));
        let ip: IpAddr = "127.0.0.1".parse().expect("an address");
        let folders = ((root.to_owned(), None), users);
        let volumes = Arc::new(Volumes::new(client, objects.clone(), images.clone(), ip, folders));
        let (inputs, mut heard) = mpsc::channel(1);
        let preparer = Arc::new(Preparer::new(objects, images, volumes, events, inputs, ip));
        let order = |uid: &str, policy: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"a","namespace":"b","uid":"{uid}"}},"spec":{{"nodeName":"n",
                    "containers":[{{"name":"c","image":"i:1","imagePullPolicy":"{policy}"}}]}}}}"#
            );
            let pod = serde_json::from_str(&text).expect("a Pod");
            let pod = spec::read(pod).expect("a Pod of a node").0.spec;
            Order { pod, index: 0, restart: 0, ip, services: Vec::new() }
        };
        let mut starts = tokio::task::JoinSet::new();
        for number in 0..=PREPARE_MAX {
            starts.spawn(preparer.clone().run(order(&format!("u{number}"), "IfNotPresent")));
        }
        starts.spawn(preparer.run(order("last", "Never")));
        let told = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
        match told.expect("it waits for no image") {
            Some(Input::Observed { uid, observation: Observation::Failed { problem, .. } }) => {
                assert_eq!((uid.as_str(), problem.reason), ("last", "ErrImageNeverPull"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_toolbox_is_for_what_an_image_lacks() {
        let image = Image {
            form: protocol::Form::Component,
            guest: protocol::Guest::Handler,
            imports: Vec::new(),
            exports: vec!["ok".to_owned()],
            missing: Vec::new(),
            memory_min_bytes: 0,
        };
        let calls = |fields: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"a","namespace":"b","uid":"u"}},
                    "spec":{{"nodeName":"n","containers":[{{"name":"c","image":"i"{fields}}}]}}}}"#
            );
            let pod = serde_json::from_str(&text).expect("a Pod");
            let spec = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
            calls_beyond(&spec.containers[0], &image)
        };
        assert!(!calls(""));
        assert!(!calls(r#","livenessProbe":{"exec":{"command":["ok"]}}"#));
        assert!(calls(r#","readinessProbe":{"exec":{"command":["cat","/tmp/healthy"]}}"#));
        assert!(calls(r#","lifecycle":{"preStop":{"exec":{"command":["sleep","5"]}}}"#));
        assert!(!calls(r#","lifecycle":{"preStop":{"sleep":{"seconds":5}}}"#));
    }

    #[test]
    fn an_image_that_is_here_is_told_too() {
        let (id, layer) = ("shop@sha256:1".to_owned(), "sha256:2".to_owned());
        let found = |pulled| Found { id: id.clone(), layer: layer.clone(), bytes: 7, pulled };
        let here = "Container image \"shop:1\" already present on machine";
        assert_eq!(got(&found(false), "shop:1"), here);
        let pulled = "Successfully pulled image \"shop:1\" (shop@sha256:1, 7 bytes)";
        assert_eq!(got(&found(true), "shop:1"), pulled);
    }

    #[test]
    fn sentences_begin_as_those_of_a_kubelet() {
        let said = |reason| in_words(&Problem { reason, message: "why".to_owned() }, "shop:1");
        assert_eq!(said("ErrImagePull"), "Failed to pull image \"shop:1\": why");
        assert_eq!(said("CreateContainerConfigError"), "Error: why");
        assert_eq!(said("ImportMissing"), "why");
    }

    #[test]
    fn events_have_the_reasons_of_a_kubelet() {
        for (status, event) in [
            ("ErrImagePull", "Failed"),
            ("ErrImageNeverPull", "ErrImageNeverPull"),
            ("InvalidImageName", "InspectFailed"),
            ("CreateContainerConfigError", "Failed"),
            ("CreateContainerError", "Failed"),
            (UNMOUNTED, "FailedMount"),
            ("ImportMissing", "ImportMissing"),
        ] {
            assert_eq!(event_of(status), event, "{status}");
        }
    }
}
