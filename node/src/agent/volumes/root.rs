//! The root directory of a container that runs the toolbox in place of a container image.
//!
//! Such a container expects `/tmp` and the files that a container runtime puts into `/etc`, and may
//! write where it likes, as into the upper layer of a container: made anew for each start, gone with
//! the Pod, counted as its ephemeral storage.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Component, Path, PathBuf},
};

use super::{PodSpec, Problem, Volumes, blocking, removal};
use crate::{agent::CLUSTER_DOMAIN, protocol};

/// Directories that programs count on.
const FOLDERS: [&str; 4] = ["etc", "home", "tmp", "var/tmp"];

impl Volumes {
    /// The mounts of a container and, below them, its root, unless it mounts that itself.
    pub async fn with_root(
        &self,
        pod: &PodSpec,
        index: usize,
        ip: IpAddr,
        mut mounts: Vec<protocol::Mount>,
    ) -> Result<Vec<protocol::Mount>, Problem> {
        if mounts.iter().any(|mount| mount.guest == "/") {
            return Ok(mounts);
        }
        let container = &pod.containers[index];
        let failed = |why: String| Problem {
            reason: "CreateContainerError",
            message: format!("cannot make the root directory of {}: {why}", container.name),
        };
        let folder = self.folder(&pod.uid, false).map_err(failed)?;
        let root = folder.join("containers").join(&container.name).join("root");
        let points =
            mounts.iter().map(|mount| mount.guest.as_str()).chain(container.cwd.as_deref());
        let points: Vec<PathBuf> = points.map(inside).collect();
        let (made, etc) = (root.clone(), etc(pod, ip));
        blocking(move || fill(&made, &points, &etc)).await.map_err(failed)?;
        let (guest, read_only) = ("/".to_owned(), container.read_only_root);
        mounts.push(protocol::Mount { root, sub: None, guest, read_only });
        Ok(mounts)
    }
}

/// A path of the guest, below a root.
fn inside(guest: &str) -> PathBuf {
    let parts = Path::new(guest).components();
    parts.filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// Names and contents of the files in `/etc`.
fn etc(pod: &PodSpec, ip: IpAddr) -> Vec<(&'static str, String)> {
    let own = match &pod.full_name {
        Some((short, full)) => format!("{full}\t{short}"),
        None => pod.hostname.clone(),
    };
    let mut hosts = format!("127.0.0.1\tlocalhost\n{ip}\t{own}\n");
    for alias in &pod.hosts {
        // Writing to a String cannot fail.
        let _ = writeln!(hosts, "{}\t{}", alias.ip, alias.name);
    }
    vec![
        ("hostname", format!("{}\n", pod.hostname)),
        ("hosts", hosts),
        ("resolv.conf", pod.dns.resolv_conf(&pod.namespace, CLUSTER_DOMAIN)),
        ("passwd", "nobody:x:65534:65534:nobody:/home:/bin/sh\n".to_owned()),
        ("group", "nobody:x:65534:\n".to_owned()),
    ]
}

fn fill(root: &Path, points: &[PathBuf], etc: &[(&str, String)]) -> io::Result<()> {
    removal::remove(root)?;
    for folder in FOLDERS.iter().map(Path::new).chain(points.iter().map(PathBuf::as_path)) {
        fs::create_dir_all(root.join(folder))?;
    }
    for (name, text) in etc {
        fs::write(root.join("etc").join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_the_name_below_a_subdomain() {
        let pod = |spec: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"web-0","namespace":"shop","uid":"u"}},
                    "spec":{{"nodeName":"n",{spec}"containers":[{{"name":"c","image":"i"}}]}}}}"#
            );
            let pod = serde_json::from_str(&text).expect("a Pod");
            let pod = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
            let hosts = etc(&pod, "10.0.0.2".parse().expect("an address"));
            let hosts = &hosts.iter().find(|(name, _)| *name == "hosts").expect("a file").1;
            (pod.hostname.clone(), hosts.lines().nth(1).expect("a line").to_owned())
        };
        let (name, line) = pod("");
        assert_eq!((name.as_str(), line.as_str()), ("web-0", "10.0.0.2\tweb-0"));
        let full = "web-0.web.shop.svc.cluster.local";
        let (name, line) = pod(r#""subdomain":"web","#);
        assert_eq!((name.as_str(), line), ("web-0", format!("10.0.0.2\t{full}\tweb-0")));
        let (name, line) = pod(r#""subdomain":"web","setHostnameAsFQDN":true,"#);
        assert_eq!((name.as_str(), line), (full, format!("10.0.0.2\t{full}\tweb-0")));
    }

    #[test]
    fn a_root_is_made_anew_with_places_for_mounts() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("tmp")).expect("a folder");
        fs::write(root.join("tmp/old"), "x").expect("a file");
        let points = [inside("/data/../etc/app"), inside("/")];
        fill(&root, &points, &[("hostname", "web\n".to_owned())]).expect("made");
        assert!(root.join("data/etc/app").is_dir() && !root.join("tmp/old").exists());
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).expect("a file"), "web\n");
    }
}
