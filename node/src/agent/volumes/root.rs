//! The root directory of a container that runs the toolbox in place of a container image.
//!
//! Such a container expects `/tmp` and the files that a container runtime puts into `/etc`, and may
//! write where it likes, as into the upper layer of a container: made anew for each start, gone with
//! the Pod, counted as its ephemeral storage.
//!
//! Of two directories with the same path a guest sees one. So single files that it mounts beside
//! those of its root (`/entrypoint.sh`, `/etc/app.conf`) become files of the root, where they may.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use super::{
    PodSpec, Problem, Volumes, blocking,
    places::{holds_single_files, make_anew},
};
use crate::{agent::CLUSTER_DOMAIN, protocol::Mount};

/// Directories that programs count on.
const FOLDERS: [&str; 4] = ["etc", "home", "tmp", "var/tmp"];

impl Volumes {
    /// The mounts of a container and, below them, its root, unless it mounts that itself.
    pub async fn with_root(
        &self,
        pod: &PodSpec,
        index: usize,
        ip: IpAddr,
        mounts: Vec<Mount>,
    ) -> Result<Vec<Mount>, Problem> {
        let container = &pod.containers[index];
        let failed = |why: String| Problem {
            reason: "CreateContainerError",
            message: format!("cannot make the root directory of {}: {why}", container.name),
        };
        let folder = self.folder(&pod.uid, false).map_err(failed)?;
        let own = folder.join("containers").join(&container.name);
        let root = own.join("root");
        let points =
            mounts.iter().map(|mount| mount.guest.as_str()).chain(container.cwd.as_deref());
        let points: Vec<PathBuf> = points.map(inside).collect();
        let (etc, read_only) = (etc(pod, ip), container.read_only_root);
        let made = blocking(move || {
            let fits = |mount: &Mount| fits(mount, &own);
            let (files, mut mounts): (Vec<Mount>, Vec<Mount>) = mounts.into_iter().partition(fits);
            if mounts.iter().any(|mount| mount.guest == "/") {
                mounts.extend(files);
                return Ok(mounts);
            }
            fill(&root, &points, &etc)?;
            files.iter().try_for_each(|mount| take_in(&root, mount))?;
            if read_only {
                mounts.extend(writable(&root, &files));
            }
            mounts.push(Mount { root, sub: None, guest: "/".to_owned(), read_only });
            Ok(mounts)
        });
        made.await.map_err(failed)
    }
}

/// Whether single files are beside those of the root and may lie there: not secrets, which are in
/// memory and not in the container's `own` folder on the disk, nor what has another name and must
/// not be written to by this one.
fn fits(mount: &Mount, own: &Path) -> bool {
    let has_names = |entry: fs::DirEntry| entry.metadata().is_ok_and(|found| found.nlink() > 1);
    holds_single_files(mount, own)
        && of_every_root(&mount.guest).is_some()
        && !(mount.read_only
            && fs::read_dir(&mount.root).into_iter().flatten().flatten().any(has_names))
}

/// Whether `with_root` moves single files, one of these mounts, into the root.
pub fn takes_in(mounts: &[Mount], mount: &Mount, own: &Path) -> bool {
    fits(mount, own) && !mounts.iter().any(|other| other.guest == "/" && !fits(other, own))
}

/// Where below its root a directory of a guest is, if every root has it.
pub fn of_every_root(guest: &str) -> Option<PathBuf> {
    let folder = inside(guest);
    FOLDERS.iter().any(|name| Path::new(name).starts_with(&folder)).then_some(folder)
}

/// Moves single files to where the guest expects them, below its root.
fn take_in(root: &Path, mount: &Mount) -> io::Result<()> {
    let folder = root.join(inside(&mount.guest));
    for entry in fs::read_dir(&mount.root)? {
        let entry = entry?;
        if mount.read_only {
            let mode = entry.metadata()?.mode() & 0o555;
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
        fs::rename(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}

/// The directories of a read-only root whose single files may be written to: a guest may write to
/// directories only. The root itself stays as it was asked to be.
fn writable(root: &Path, files: &[Mount]) -> Vec<Mount> {
    let may = files.iter().filter(|mount| !mount.read_only).map(|mount| {
        let folder = root.join(inside(&mount.guest));
        Mount { root: folder, ..mount.clone() }
    });
    may.filter(|mount| mount.root != root).collect()
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
    make_anew(root)?;
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
    fn single_files_lie_beside_those_of_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let (memory, root) = (folder.path().join("memory"), folder.path().join("root"));
        assert_eq!(of_every_root("/var/tmp/"), Some(PathBuf::from("var/tmp")));
        assert_eq!((of_every_root("/"), of_every_root("/dev")), (Some(PathBuf::new()), None));
        let mount = |root: PathBuf, guest: &str| {
            fs::create_dir_all(&root).expect("a folder");
            fs::write(root.join("run.sh"), "exit").expect("a file");
            Mount { root, sub: None, guest: guest.to_owned(), read_only: true }
        };
        let fits = |mount: &Mount| fits(mount, folder.path());
        let script = mount(folder.path().join("file-0"), "/");
        assert!(fits(&script) && fits(&Mount { guest: "/var".to_owned(), ..script.clone() }));
        assert!(!fits(&Mount { guest: "/app".to_owned(), ..script.clone() }));
        assert!(!fits(&mount(folder.path().join("volumes/file-store"), "/tmp")), "a volume");
        assert!(!fits(&mount(memory.join("file-1"), "/etc")), "a secret");

        fill(&root, &[], &[]).expect("made");
        take_in(&root, &script).expect("moved");
        let found = fs::metadata(root.join("run.sh")).expect("a file");
        assert!(found.mode() & 0o222 == 0 && !script.root.join("run.sh").exists());

        let state = Mount { read_only: false, ..mount(folder.path().join("file-3"), "/etc/") };
        let beside = Mount { guest: "/".to_owned(), ..state.clone() };
        let shown = Mount { root: root.join("etc"), ..state.clone() };
        assert_eq!(writable(&root, &[script, state, beside]), [shown]);

        let shared = mount(folder.path().join("file-2"), "/tmp");
        fs::hard_link(shared.root.join("run.sh"), root.join("other")).expect("another name");
        assert!(!fits(&shared) && fits(&Mount { read_only: false, ..shared }));
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
