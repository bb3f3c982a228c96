//! `wherry keys`: the keyring of encryption at rest, on the machine of a control-plane member.
//!
//! Both verbs work on the file. A running member takes a new key up by itself.

use std::path::PathBuf;

use wherry_control_plane::at_rest::{self, KeyInfo, Keyring, KeyringError};

use crate::diagnostic::Diagnostic;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show the names of the keys, never the keys
    List(Place),
    /// Add a key that encrypts from now on; older ones go on decrypting
    Rotate(Place),
}

/// Which keyring.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// Data folder of the member
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The keyring, if it is not in the data folder
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
}

impl Place {
    fn path(self) -> PathBuf {
        let config = at_rest::Config { keyring: self.keyring, ..at_rest::Config::default() };
        config.path(&self.data_dir.unwrap_or_default())
    }
}

pub fn main(verb: Verb) -> Result<(), Diagnostic> {
    match verb {
        Verb::List(place) => {
            let path = place.path();
            let keyring = Keyring::open(&path, at_rest::cover(false)).map_err(unusable)?;
            print!("{}", table(&keyring.keys()));
        }
        Verb::Rotate(place) => {
            let path = place.path();
            let added = Keyring::rotate(&path).map_err(unusable)?;
            println!("{added} encrypts from now on; members that run take it up within seconds");
            eprintln!("keep a copy of {}, apart from the backups", path.display());
            eprintln!("with several members, put the same file on each of them");
        }
    }
    Ok(())
}

fn unusable(error: KeyringError) -> Diagnostic {
    Diagnostic::new("WH0040", "the keyring cannot be used")
        .why(error)
        .help("name the data folder of a member with --data-dir, or the file with --keyring")
}

fn table(keys: &[KeyInfo]) -> String {
    let mut text = String::from("KEY               MADE                  USE\n");
    for key in keys {
        let made = i64::try_from(key.made_seconds).ok();
        let made = made.and_then(|made| jiff::Timestamp::from_second(made).ok());
        let made = made.map_or_else(|| "?".to_owned(), |made| made.to_string());
        let used = if key.newest { "encrypts" } else { "decrypts" };
        text.push_str(&format!("{}  {made:<20}  {used}\n", key.fingerprint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_listed_by_name() {
        let key = "07".repeat(32);
        let text = format!("wherry-keyring-1\n4bb06f8e4e3a7715 1700000000 {key}\n");
        let keyring = Keyring::parse(&text, "test", at_rest::cover(false));
        let shown = keyring.map(|keyring| table(&keyring.keys()));
        expect_test::expect![[r"
            KEY               MADE                  USE
            4bb06f8e4e3a7715  2023-11-14T22:13:20Z  encrypts
        "]]
        .assert_eq(&shown.unwrap_or_else(|error| error.to_string()));
    }
}
