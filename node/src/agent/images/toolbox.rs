//! The image that comes with the binary, and the names of container images that it stands for.
//!
//! The toolbox is a command component with a shell and small programs (`sample-apps/toolbox`). It
//! lies in the binary, so it is there without a registry and while the control plane is away, and
//! is compiled like every other image when it is first needed.
//!
//! A container image holds programs for an operating system, which cannot run here. But many
//! manifests want nothing but a shell: for the images of [`ALIASES`] a node that was told so runs
//! the toolbox instead, and says so (imageID, an event). A digest names one content and no other,
//! so it is never an alias.

use super::reference::{Reference, Version};

/// The image; empty where it was not built before the binary.
pub static TOOLBOX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/toolbox.wasm"));

/// What a container image would run, as its Dockerfile says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Alias {
    name: &'static str,
    /// `ENTRYPOINT`
    entrypoint: &'static [&'static str],
    /// `CMD`
    command: &'static [&'static str],
}

const fn alias(
    name: &'static str,
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
) -> Alias {
    Alias { name, entrypoint, command }
}

/// Images that the toolbox stands for. Those of bash and curl begin with a script that puts their
/// program in front unless a program is named (`-- sh`): the toolbox knows which those are.
static ALIASES: &[Alias] = &[
    alias("agnhost", &["/agnhost"], &["pause"]),
    alias("alpine", &[], &["/bin/sh"]),
    alias("ash", &[], &["/bin/sh"]),
    alias("bash", &["entrypoint", "bash"], &[]),
    alias("busybox", &[], &["sh"]),
    alias("curl", &["entrypoint", "curl"], &[]),
    alias("curlimages/curl", &["entrypoint", "curl"], &[]),
    alias("debian", &[], &["bash"]),
    alias("pause", &["/pause"], &[]),
    alias("ubuntu", &[], &["bash"]),
];

/// Registries whose images of these names are the well-known ones, and what comes before the name.
static REGISTRIES: &[(&str, &[&str])] = &[
    ("docker.io", &["", "library/"]),
    ("index.docker.io", &["", "library/"]),
    ("gcr.io", &["google-containers/", "google_containers/"]),
    ("k8s.gcr.io", &["", "e2e-test-images/"]),
    ("mirror.gcr.io", &["library/"]),
    ("public.ecr.aws", &["docker/library/"]),
    ("registry.k8s.io", &["", "e2e-test-images/"]),
];

impl Alias {
    /// The arguments of a container: `ENTRYPOINT` and `CMD` are what the Pod does not say.
    /// `own_command` is whether the Pod has a `command`, `args` is `argv` as without an alias.
    pub fn argv(&self, own_command: bool, args: Vec<String>) -> Vec<String> {
        if own_command {
            return args;
        }
        let given = &args[1..];
        let entrypoint = self.entrypoint.iter().map(|word| (*word).to_owned());
        let argv: Vec<String> = if given.is_empty() {
            entrypoint.chain(self.command.iter().map(|word| (*word).to_owned())).collect()
        } else {
            entrypoint.chain(given.iter().cloned()).collect()
        };
        argv
    }
}

/// Whether an image is one that the toolbox stands for.
pub fn of(reference: &Reference) -> Option<&'static Alias> {
    if let Version::Digest(_) = reference.version {
        return None;
    }
    let name = reference.name.as_str();
    let known = |name: &str| ALIASES.iter().find(|alias| alias.name == name);
    let Some(host) = reference.host.as_deref() else {
        return known(name.strip_prefix("library/").unwrap_or(name));
    };
    let (_, folders) = REGISTRIES.iter().find(|(registry, _)| *registry == host)?;
    folders.iter().find_map(|folder| known(name.strip_prefix(folder)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(image: &str) -> Option<&'static str> {
        of(&Reference::parse(image).expect("a reference")).map(|alias| alias.name)
    }

    #[test]
    fn well_known_images_are_aliases_and_others_are_not() {
        let digest = format!("busybox@sha256:{}", "0a".repeat(32));
        let cases = [
            ("busybox", Some("busybox")),
            ("busybox:1.36", Some("busybox")),
            ("docker.io/library/alpine:3", Some("alpine")),
            ("docker.io/alpine:3", Some("alpine")),
            ("registry.k8s.io/pause:3.9", Some("pause")),
            ("registry.k8s.io/e2e-test-images/agnhost:2.53", Some("agnhost")),
            ("curlimages/curl:8.5.0", Some("curlimages/curl")),
            ("registry.example:5000/busybox", None),
            ("team/busybox", None),
            ("docker.io/team/busybox", None),
            ("nginx", None),
            (&digest, None),
        ];
        for (image, expected) in cases {
            assert_eq!(name_of(image), expected, "{image}");
        }
    }

    #[test]
    fn what_the_pod_does_not_say_comes_from_the_image() {
        let argv = |image: &str, own: bool, args: &[&str]| {
            let alias = of(&Reference::parse(image).expect("a reference")).expect("an alias");
            let args = args.iter().map(|word| (*word).to_owned()).collect();
            alias.argv(own, args).join(" ")
        };
        assert_eq!(argv("busybox", false, &["busybox"]), "sh");
        assert_eq!(argv("busybox", false, &["busybox", "sleep", "5"]), "sleep 5");
        assert_eq!(argv("busybox", true, &["sh", "-c", "ls"]), "sh -c ls");
        assert_eq!(argv("agnhost", false, &["agnhost"]), "/agnhost pause");
        assert_eq!(argv("agnhost", false, &["agnhost", "netexec"]), "/agnhost netexec");
        let curl = "curlimages/curl";
        assert_eq!(argv(curl, false, &[curl, "sh"]), "entrypoint curl sh");
        assert_eq!(argv("bash", false, &["bash", "-c", "ls"]), "entrypoint bash -c ls");
        assert_eq!(argv("bash", false, &["bash"]), "entrypoint bash");
    }
}
