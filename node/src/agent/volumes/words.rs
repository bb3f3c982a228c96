//! Where a container's last words are: the file of `terminationMessagePath`, on the host.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, fchown},
    path::{Path, PathBuf},
};

use super::{places, root};
use crate::protocol::Mount;

/// Whose words they are.
pub struct Speaker {
    /// `terminationMessagePath`
    pub path: String,
    /// Its folders, that on the disk first.
    pub own: Vec<PathBuf>,
    /// Whether it gets a root directory, and whether that may only be read.
    pub root: Option<bool>,
    /// The user of its worker.
    pub owner: Option<u32>,
}

/// The file, and a directory beside it in which it is instead; see `LastWords`. A directory that the
/// container does not have becomes one more mount.
pub fn place(
    speaker: &Speaker,
    mounts: &mut Vec<Mount>,
) -> io::Result<Option<(PathBuf, Option<PathBuf>)>> {
    let path = Path::new(&speaker.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let (Some(guest), Some(own)) = (parent.to_str(), speaker.own.first()) else {
        return Ok(None);
    };
    let Some(at) = mounts.iter().position(|mount| Path::new(&mount.guest) == parent) else {
        let all: &[Mount] = mounts;
        let covers =
            |mount: &Mount| parent.starts_with(&mount.guest) && !root::takes_in(all, mount, own);
        let has_root = speaker.root.is_some() && !all.iter().any(covers);
        let in_root = root::of_every_root(guest).filter(|_| has_root);
        // A directory of its own would hide that of the root, but may be written to in any case.
        if let Some(sub) = in_root.filter(|_| speaker.root == Some(false) || guest == "/") {
            return Ok(Some((own.join("root").join(name), Some(sub))));
        }
        let folder = own.join("last-words");
        places::make_anew(&folder)?;
        let file = folder.join(name);
        make(&file, speaker.owner)?;
        let guest = guest.to_owned();
        mounts.push(Mount { root: folder, sub: None, guest, read_only: false });
        return Ok(Some((file, None)));
    };
    let mount = &mut mounts[at];
    let file = mount.root.join(name);
    if !speaker.own.iter().any(|own| places::holds_single_files(mount, own)) {
        // A volume is there already: the file is in it.
        return Ok((!mount.read_only).then(|| (file, mount.sub.clone())));
    }
    let there = fs::symlink_metadata(&file).ok();
    if there.as_ref().is_some_and(|it| mount.read_only || it.mode() & 0o222 == 0) {
        // It may only be read, and may be of a Secret: nobody's words are in it.
        return Ok(None);
    }
    // Single files are there already: this is one more, that may be written to.
    if mount.read_only {
        places::close(&mount.root)?;
        mount.read_only = false;
    }
    if there.is_none() {
        make(&file, speaker.owner)?;
    }
    let sub = root::of_every_root(guest).filter(|_| speaker.root.is_some());
    Ok(Some(match sub.filter(|_| root::takes_in(mounts, &mounts[at], own)) {
        Some(sub) => (own.join("root").join(name), Some(sub)),
        None => (file, None),
    }))
}

fn make(file: &Path, owner: Option<u32>) -> io::Result<()> {
    fchown(fs::File::create_new(file)?, owner, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the last words of a container with one mount, a single file or a volume, are below the
    /// folder that all is in; and how many mounts it has then.
    fn placed(path: &str, root: Option<bool>, mount: (&str, &str, bool)) -> (String, usize) {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("own");
        let (name, guest, read_only) = mount;
        let shown = folder.path().join(name);
        fs::create_dir_all(&shown).expect("a folder");
        fs::write(shown.join("app.conf"), "x=1").expect("a file");
        let mut mounts = vec![Mount { root: shown, sub: None, guest: guest.to_owned(), read_only }];
        let speaker = Speaker { path: path.to_owned(), own: vec![own], root, owner: None };
        let found = place(&speaker, &mut mounts).expect("placed");
        let text = found.map_or("nowhere".to_owned(), |(file, sub)| {
            let below = file.strip_prefix(folder.path()).expect("it is in the folder");
            let made = if file.exists() { " made" } else { "" };
            let sub = sub.map_or(String::new(), |sub| format!(" {}", sub.display()));
            format!("{}{sub}{made}", below.display())
        });
        (text, mounts.len())
    }

    #[test]
    fn last_words_are_where_the_guest_will_find_their_file() {
        let (plain, aliased, closed) = (None, Some(false), Some(true));
        let file = |guest, read_only| ("own/file-0", guest, read_only);
        let volume = |guest, read_only| ("volumes/file-0", guest, read_only);
        for (path, root, mount, expected) in [
            ("/dev/log", plain, file("/tmp", true), "own/last-words/log made"),
            ("/dev/log", aliased, file("/tmp", true), "own/last-words/log made"),
            // Beside a single file, which is moved into a root that there is.
            ("/tmp/log", plain, file("/tmp", false), "own/file-0/log made"),
            ("/tmp/log", plain, file("/tmp", true), "own/file-0/log made"),
            ("/tmp/log", aliased, file("/tmp", false), "own/root/log tmp"),
            ("/tmp/log", aliased, file("/tmp", true), "own/root/log tmp"),
            ("/tmp/log", closed, file("/tmp", true), "own/root/log tmp"),
            ("/tmp/app.conf", aliased, file("/tmp", false), "own/root/app.conf tmp"),
            ("/tmp/app.conf", aliased, file("/tmp", true), "nowhere"),
            ("/app/log", aliased, file("/app", false), "own/file-0/log made"),
            // One in the root itself hides nothing of it.
            ("/tmp/log", aliased, file("/", true), "own/root/log tmp"),
            ("/tmp/log", closed, file("/", true), "own/last-words/log made"),
            // Volumes are what they are.
            ("/tmp/log", aliased, volume("/tmp", false), "volumes/file-0/log"),
            ("/tmp/log", aliased, volume("/tmp", true), "nowhere"),
            ("/tmp/log", aliased, volume("/", false), "own/last-words/log made"),
            ("/", plain, volume("/tmp", false), "nowhere"),
        ] {
            let (found, mounts) = placed(path, root, mount);
            assert_eq!(found, expected, "{path} {root:?} {mount:?}");
            let more = usize::from(expected.contains("last-words"));
            assert_eq!(mounts, 1 + more, "{path} {root:?} {mount:?}");
        }
    }
}
