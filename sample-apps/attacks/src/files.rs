//! Everything that a file system runs out of. `/data` is the only volume.

use std::fs::{self, File};
use std::io::Write as _;

use crate::storm;

const DATA: &str = "/data";

fn failed(error: std::io::Error) -> String {
    error.to_string()
}

pub fn disk() {
    let block = vec![1_u8; 1 << 20];
    let mut file = File::create(format!("{DATA}/large")).expect("the volume can be written");
    storm(|| file.write_all(&block).map_err(failed));
}

pub fn many_files() {
    let mut number = 0_u64;
    storm(|| {
        number += 1;
        File::create(format!("{DATA}/{number}")).map(drop).map_err(failed)
    });
}

/// A folder in a folder, deeper than any path is long: the way down is by handles that are moved.
pub fn deep_folders() {
    let mut top = 0_u64;
    storm(|| {
        top += 1;
        // What fits in a path; then that is put into the next one, which makes it deeper.
        let mut path = format!("{DATA}/{top}");
        fs::create_dir(&path).map_err(failed)?;
        while path.len() < 2_000 {
            path += "/d";
            fs::create_dir(&path).map_err(failed)?;
        }
        if top > 1 {
            fs::rename(format!("{DATA}/{}", top - 1), format!("{path}/e")).map_err(failed)?;
        }
        Ok(())
    });
}

pub fn long_names() {
    let mut number = 0_u64;
    storm(|| {
        number += 1;
        let name = format!("{number}{}", "n".repeat(200 + (number % 4_000) as usize));
        File::create(format!("{DATA}/{name}")).map(drop).map_err(failed)
    });
}

pub fn open_files() {
    File::create(format!("{DATA}/one")).expect("the volume can be written");
    let mut held = Vec::new();
    storm(|| {
        held.push(File::open(format!("{DATA}/one")).map_err(failed)?);
        Ok(())
    });
}
