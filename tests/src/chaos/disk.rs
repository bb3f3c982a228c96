//! A small file system of its own for a member's data, so that a full disk can be had without
//! filling the machine's: ext4 in a file, mounted by a loop device. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;

/// RocksDB keeps up to 256 MiB of write-ahead files; a file with holes costs only what is used.
const DISK_MIB: u64 = 768;

/// The mounted file system; dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    pub folder: PathBuf,
}

impl SmallDisk {
    /// Whether this process may mount one.
    pub fn possible() -> bool {
        nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists()
    }

    /// Makes and mounts one below a folder.
    pub fn mount(place: &Path) -> Result<SmallDisk> {
        let (image, folder) = (place.join("disk.img"), place.join("disk"));
        std::fs::create_dir_all(&folder)?;
        std::fs::File::create(&image)?.set_len(DISK_MIB << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&folder))?;
        Ok(SmallDisk { folder })
    }

    /// Fills it until this part of it is used; 0 gives the space back.
    pub fn fill(&self, percent: u8) -> Result<()> {
        let ballast = self.folder.join("ballast");
        if percent == 0 {
            return std::fs::remove_file(&ballast).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error.into()),
            });
        }
        let found = statvfs(&self.folder)?;
        let (total, free) = (found.blocks(), found.blocks_available());
        let wanted_free = total * u64::from(100 - percent.min(100)) / 100;
        let bytes = free.saturating_sub(wanted_free) * found.fragment_size();
        if bytes == 0 {
            return Ok(());
        }
        let mut command = Command::new("fallocate");
        let filled = run(command.args(["-l", &bytes.to_string()]).arg(&ballast));
        // Told to take all, it takes what there is and says that it is not enough.
        if percent >= 100 { Ok(()) } else { filled }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.folder)) {
            eprintln!("chaos: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", crate::text(&output.stderr));
    Ok(())
}
