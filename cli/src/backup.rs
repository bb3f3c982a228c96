//! `wherry backup`: saving the state of a running cluster into a file, looking into such a file,
//! and making a new cluster of one.
//!
//! A file comes into being under another name, is read back and checked to its last byte, and only
//! then gets its own: what has the name is a backup that was sound.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use http_body_util::BodyExt as _;
use kube::client::Body;
use wherry_control_plane::at_rest::KeyringError;
use wherry_control_plane::backup::{
    self, BackupError, Inspection, RestoreFailed, RestoreOptions, RestoredCluster,
};

use crate::api;
use crate::diagnostic::Diagnostic;
use crate::folder;

/// What a cluster says when it refuses is one sentence in JSON.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Save everything the cluster stores into a file, while it runs
    Save(Save),
    /// Check a backup file to its last byte and show what is in it
    Inspect(Inspect),
    /// Make the data folder of a new cluster from a backup
    Restore(Restore),
}

#[derive(clap::Args)]
pub struct Save {
    /// The file, which must not exist yet
    file: PathBuf,
    /// Put the keys of encryption at rest into the file: it can then be restored without anything
    /// else, and whoever has it can read every Secret
    #[arg(long)]
    include_keyring: bool,
    #[command(flatten)]
    cluster: api::Cluster,
}

#[derive(clap::Args)]
pub struct Inspect {
    /// The file
    file: PathBuf,
    /// Keyring of the cluster it was made from, to check encrypted values too
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Restore {
    /// The file
    file: PathBuf,
    /// Data folder of the new cluster's first member; must not exist yet, or be empty
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Go on with the authorities of the old cluster (a member's `pki` folder or a copy of it), so
    /// that its nodes, kubeconfigs and tokens stay valid; without it they are issued anew
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// Keyring of the old cluster, if it is neither in that folder nor in the backup, and this is not
    /// the machine of the member that made the backup
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Name of the first member [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Where nodes and other members will reach the first member; needed if others are to join
    #[arg(long, value_name = "ADDRESS:PORT")]
    advertise: Option<SocketAddr>,
}

pub fn main(verb: Verb) -> Result<(), Diagnostic> {
    match verb {
        Verb::Save(flags) => crate::roles::small_runtime()?.block_on(save(flags)),
        Verb::Inspect(flags) => {
            let inspection = backup::inspect(&flags.file, flags.keyring.as_deref());
            let inspection = inspection.map_err(|error| unusable(&flags.file, error))?;
            print!("{}", described(&inspection));
            Ok(())
        }
        Verb::Restore(flags) => restore(flags),
    }
}

async fn save(flags: Save) -> Result<(), Diagnostic> {
    let Save { file, include_keyring, cluster } = flags;
    if file.exists() {
        return Err(Diagnostic::new("WH0041", format!("{} is there already", file.display()))
            .why("a backup never takes the place of another file")
            .help("choose another name"));
    }
    let connection = cluster.connect().await?;
    let mut partial = file.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let saved = async {
        download(&connection.client, include_keyring, &partial).await?;
        let inspection = backup::inspect(&partial, None);
        let inspection = inspection.map_err(|error| unusable(&partial, error))?;
        name_it(&partial, &file).map_err(|error| cannot_write(&file, error))?;
        Ok(inspection)
    };
    let saved: Result<Inspection, Diagnostic> = saved.await;
    if saved.is_err() {
        // The failure is what the user must hear of; the rest is replaced by the next attempt.
        let _ = fs::remove_file(&partial);
    }
    let inspection = saved?;
    println!("saved {}", file.display());
    print!("{}", described(&inspection));
    if include_keyring {
        eprintln!("the keyring is in the file: whoever has it can read every Secret");
    } else if inspection.content.sealed > 0 {
        eprintln!(
            "restoring it needs the cluster's keyring: on another machine than its members', name a \
             copy of pki/at-rest.keys"
        );
    }
    Ok(())
}

/// Fetches the file and makes sure that it is on the disk.
async fn download(
    client: &kube::Client,
    include_keyring: bool,
    to: &Path,
) -> Result<(), Diagnostic> {
    let query = if include_keyring { "?keyring=include" } else { "" };
    let request = http::Request::get(format!("/wherry/v1/backup{query}")).body(Body::empty());
    let request = request.expect("the path is well formed");
    let response = client.send(request).await.map_err(api::failed("saving a backup"))?;
    let code = response.status();
    let body = response.into_body();
    if !code.is_success() {
        let body = http_body_util::Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        let status: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
        let message = status.and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
        let message = message.unwrap_or_else(|| format!("it answered {code}"));
        return Err(Diagnostic::new("WH0041", "the cluster gave no backup")
            .why(message)
            .help("use an administrator's kubeconfig:   --kubeconfig DIR/admin.kubeconfig"));
    }
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(to);
    let mut file = opened.map_err(|error| cannot_write(to, error))?;
    let mut frames = body.into_data_stream();
    while let Some(frame) = frames.try_next().await.map_err(cut_off)? {
        file.write_all(&frame).map_err(|error| cannot_write(to, error))?;
    }
    file.sync_all().map_err(|error| cannot_write(to, error))
}

fn cut_off<E: Into<Box<dyn std::error::Error>>>(error: E) -> Diagnostic {
    Diagnostic::new("WH0041", "the cluster stopped sending in the middle of the backup")
        .why(error)
        .help("try again; another member of the control plane takes over")
}

fn cannot_write(file: &Path, error: io::Error) -> Diagnostic {
    Diagnostic::new("WH0041", format!("cannot write {}", file.display()))
        .why(error)
        .help("choose a folder of your own on a disk with room")
}

/// Gives a whole file its name; one that has come to be there meanwhile is not replaced.
fn name_it(partial: &Path, file: &Path) -> io::Result<()> {
    fs::hard_link(partial, file)?;
    fs::remove_file(partial)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn restore(flags: Restore) -> Result<(), Diagnostic> {
    let Restore { file, data_dir, pki, keyring, name, advertise } = flags;
    let name = name.map_or_else(crate::roles::host_name, Ok)?;
    let kept = pki.is_some();
    let options = RestoreOptions { data_dir, pki, keyring, name, advertise };
    let restored = backup::restore(&file, &options);
    let restored = restored.map_err(|error| unusable(&file, error))?;
    print!("{}", told(&restored, &options.data_dir, kept));
    Ok(())
}

fn told(restored: &RestoredCluster, data_dir: &Path, kept: bool) -> String {
    let RestoredCluster { content, cluster_id, revision } = restored;
    let head = &content.head;
    let shown = folder::quoted(data_dir);
    let mut text = format!(
        "restored {} objects of revision {} into {shown}\n\
         new cluster {cluster_id:032x}, its revisions begin at {revision}\n\
         start it:   wherry server --data-dir {shown}\n",
        head.objects, head.revision
    );
    text.push_str(match kept {
        true => "the authorities are the old cluster's: nodes and kubeconfigs stay valid\n",
        false => {
            "the authorities are new: use its admin.kubeconfig, let nodes join with new tokens\n"
        }
    });
    text
}

/// A backup, or a folder to restore it to, that cannot be used.
fn unusable(file: &Path, error: RestoreFailed) -> Diagnostic {
    let shown = file.display();
    let unread = matches!(&error, RestoreFailed::File { path, .. } if path == file);
    match &error {
        _ if unread => Diagnostic::new("WH0042", format!("{shown} is not a usable backup"))
            .why(error)
            .help("name a file that `wherry backup save` has made"),
        RestoreFailed::Backup(BackupError::Key(_)) => {
            Diagnostic::new("WH0043", format!("{shown} cannot be decrypted"))
                .why(error)
                .help("name a copy of the old cluster's keyring:   --keyring FILE")
                .help("name a copy of its folder of authorities, when restoring:   --pki DIR")
        }
        RestoreFailed::Backup(BackupError::OtherVersion) => {
            Diagnostic::new("WH0042", format!("{shown} is not a backup of this version"))
                .why(error)
                .help("see which version is here:   wherry --version")
        }
        RestoreFailed::Backup(_) => {
            Diagnostic::new("WH0042", format!("{shown} is not a usable backup"))
                .why(error)
                .help("take another one; each can be checked:   wherry backup inspect FILE")
        }
        RestoreFailed::NoAuthority { .. } => {
            Diagnostic::new("WH0043", format!("{shown} cannot be restored"))
                .why(error)
                .help("name the pki folder of a member, or a copy of it:   --pki DIR")
        }
        // It is the new cluster's that cannot be written.
        RestoreFailed::Keyring(KeyringError::File { what: "write", .. }) => {
            Diagnostic::new("WH0043", format!("{shown} cannot be restored"))
                .why(error)
                .help("restore into a folder of your own on a disk with room:   --data-dir DIR")
        }
        RestoreFailed::Keyring(_) => Diagnostic::new("WH0040", "the keyring cannot be used")
            .why(error)
            .help("name a copy of the old cluster's keyring:   --keyring FILE"),
        _ => Diagnostic::new("WH0043", format!("{shown} cannot be restored"))
            .why(error)
            .help("restore into a new folder:   --data-dir DIR"),
    }
}

/// What a backup is, for people and for `diff`.
fn described(inspection: &Inspection) -> String {
    let Inspection { content, kinds } = inspection;
    let head = &content.head;
    let made = i64::try_from(head.made_ms).ok();
    let made = made.and_then(|made| jiff::Timestamp::from_millisecond(made).ok());
    let made = made.map_or_else(|| "?".to_owned(), |made| made.strftime("%FT%TZ").to_string());
    let encrypted = match content.sealed {
        0 => "nothing".to_owned(),
        sealed => {
            let keys: Vec<String> = content.keys.iter().map(ToString::to_string).collect();
            let carried = if content.has_keyring { ", which the file carries" } else { "" };
            format!("{sealed} objects, with key {}{carried}", keys.join(", "))
        }
    };
    let hash = content.content_sha256.as_deref().unwrap_or("needs the keyring (--keyring FILE)");
    let mut text = format!(
        "made       {made} by wherry {}\n\
         cluster    {:032x}\n\
         revision   {}\n\
         objects    {}\n\
         encrypted  {encrypted}\n\
         file       sha256 {}\n\
         content    sha256 {hash}\n\n",
        head.program, head.cluster_id, head.revision, head.objects, content.file_sha256
    );
    text.push_str(&format!("{:<50} {:>9} {:>12} {:>9}\n", "TYPE", "OBJECTS", "BYTES", "ENCRYPTED"));
    for (name, kind) in kinds {
        let name = name.trim_start_matches('/');
        let row = (kind.objects, kind.bytes, kind.encrypted);
        text.push_str(&format!("{name:<50} {:>9} {:>12} {:>9}\n", row.0, row.1, row.2));
    }
    text
}

#[cfg(test)]
mod tests;
