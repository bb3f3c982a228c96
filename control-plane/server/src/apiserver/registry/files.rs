//! The registry's folder.
//!
//! ```text
//! <folder>/<repository, + for />/blobs/<digest>      the bytes
//!                                manifests/<digest>  media type, newline, the bytes
//!                                tags/<tag>          the digest
//!                                uploads/<uuid>      what has arrived of a blob
//! ```
//!
//! Invariants: a file outside `uploads` is written under another name, synced, renamed, and its
//! folder synced, so it is whole after a crash; content is never changed, only tags are replaced.
//! What is acknowledged is on the disk.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::error::Error;
use super::reference::{Digest, Name, Tag};

/// An upload that nobody continued for this long is removed when the next one starts. Clients go on
/// within seconds or begin anew.
const UPLOAD_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// Bytes read at a time when content is sent or its digest computed.
const READ_BYTES: usize = 64 << 10;

/// All repositories.
pub struct Files {
    folder: PathBuf,
}

/// A stored manifest.
pub struct Manifest {
    pub media_type: String,
    pub content: Bytes,
}

/// A stored blob, opened.
pub struct Blob {
    file: File,
    pub length: u64,
}

/// A blob that is being uploaded.
pub struct Upload {
    pub name: Name,
    pub id: Uuid,
    pub length: u64,
    path: PathBuf,
    file: File,
}

impl Files {
    pub fn new(folder: PathBuf) -> Files {
        Files { folder }
    }

    fn place(&self, name: &Name, kind: &str) -> PathBuf {
        self.folder.join(name.folder()).join(kind)
    }

    /// Tags of a repository in order.
    pub async fn tags(&self, name: &Name) -> Result<Vec<String>, Error> {
        let mut entries = match fs::read_dir(self.place(name, "tags")).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NameUnknown),
            Err(error) => return Err(Error::disk("list tags")(error)),
        };
        let mut tags = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(Error::disk("list tags"))? {
            // A file that is still being written has a name that is no tag.
            let tag = entry.file_name().to_str().and_then(Tag::parse);
            tags.extend(tag.map(|tag| tag.as_str().to_string()));
        }
        tags.sort();
        Ok(tags)
    }

    /// The manifest that a tag names.
    pub async fn tagged(&self, name: &Name, tag: &Tag) -> Result<Digest, Error> {
        let path = self.place(name, "tags").join(tag.as_str());
        let content = read(&path, "read a tag").await?.ok_or(Error::ManifestUnknown)?;
        let digest = std::str::from_utf8(&content).ok().and_then(Digest::parse);
        let damaged = || Error::disk("read a tag")(ErrorKind::InvalidData.into());
        digest.ok_or_else(damaged)
    }

    pub async fn manifest(&self, name: &Name, digest: &Digest) -> Result<Manifest, Error> {
        let path = self.place(name, "manifests").join(digest.digits());
        let content = read(&path, "read a manifest").await?.ok_or(Error::ManifestUnknown)?;
        let damaged = || Error::disk("read a manifest")(ErrorKind::InvalidData.into());
        let end = content.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        Ok(Manifest {
            media_type: String::from_utf8_lossy(&content[..end]).into_owned(),
            content: Bytes::from(content).slice(end + 1..),
        })
    }

    pub async fn put_manifest(
        &self,
        name: &Name,
        digest: &Digest,
        media_type: &str,
        content: &[u8],
    ) -> Result<(), Error> {
        let content = [media_type.as_bytes(), b"\n", content].concat();
        let place = self.place(name, "manifests");
        write(place, digest.digits(), &content).await.map_err(Error::disk("write a manifest"))
    }

    pub async fn put_tag(&self, name: &Name, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let content = digest.to_string();
        let place = self.place(name, "tags");
        write(place, tag.as_str(), content.as_bytes()).await.map_err(Error::disk("write a tag"))
    }

    pub async fn blob(&self, name: &Name, digest: &Digest) -> Result<Blob, Error> {
        let file = match File::open(self.place(name, "blobs").join(digest.digits())).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::BlobUnknown),
            Err(error) => return Err(Error::disk("open a blob")(error)),
        };
        let length = file.metadata().await.map_err(Error::disk("open a blob"))?.len();
        Ok(Blob { file, length })
    }

    /// Makes a blob of one repository a blob of another, too. False when it is not there.
    pub async fn mount(&self, name: &Name, from: &Name, digest: &Digest) -> Result<bool, Error> {
        let source = self.place(from, "blobs").join(digest.digits());
        let place = self.place(name, "blobs");
        fs::create_dir_all(&place).await.map_err(Error::disk("make a folder"))?;
        match fs::hard_link(source, place.join(digest.digits())).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::disk("mount a blob")(error)),
        }
        sync_folder(&place).await.map_err(Error::disk("mount a blob"))?;
        Ok(true)
    }

    /// Starts an upload, unless `limit` are under way in this repository.
    pub async fn start_upload(&self, name: &Name, limit: usize) -> Result<Upload, Error> {
        let place = self.place(name, "uploads");
        fs::create_dir_all(&place).await.map_err(Error::disk("make a folder"))?;
        let under_way = remove_stale(&place).await.map_err(Error::disk("list uploads"))?;
        if under_way >= limit {
            return Err(Error::TooManyUploads);
        }
        let id = Uuid::new_v4();
        let path = place.join(id.to_string());
        let file = OpenOptions::new().create_new(true).append(true).open(&path).await;
        let file = file.map_err(Error::disk("start an upload"))?;
        Ok(Upload { name: name.clone(), id, length: 0, path, file })
    }

    /// The upload of this id as it stands.
    pub async fn upload(&self, name: &Name, id: &Uuid) -> Result<Upload, Error> {
        let path = self.place(name, "uploads").join(id.to_string());
        let file = match OpenOptions::new().append(true).open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::UploadUnknown),
            Err(error) => return Err(Error::disk("open an upload")(error)),
        };
        let length = file.metadata().await.map_err(Error::disk("open an upload"))?.len();
        Ok(Upload { name: name.clone(), id: *id, length, path, file })
    }

    /// Makes an upload a blob. Content that has another digest is thrown away.
    pub async fn finish_upload(&self, upload: Upload, digest: &Digest) -> Result<(), Error> {
        upload.file.sync_all().await.map_err(Error::disk("write a blob"))?;
        let found = digest_of(&upload.path).await.map_err(Error::disk("read an upload"))?;
        if found != *digest {
            upload.cancel().await?;
            return Err(Error::DigestMismatch);
        }
        let place = self.place(&upload.name, "blobs");
        let rename = async {
            fs::create_dir_all(&place).await?;
            fs::rename(&upload.path, place.join(digest.digits())).await?;
            sync_folder(&place).await
        };
        rename.await.map_err(Error::disk("write a blob"))
    }
}

impl Blob {
    /// The bytes from `start` to before `end`.
    pub async fn stream(mut self, start: u64, end: u64) -> Result<Body, Error> {
        self.file.seek(io::SeekFrom::Start(start)).await.map_err(Error::disk("read a blob"))?;
        Ok(Body::from_stream(ReaderStream::with_capacity(self.file.take(end - start), READ_BYTES)))
    }
}

impl Upload {
    pub async fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.file.write_all(chunk).await.map_err(Error::disk("write an upload"))?;
        self.length += chunk.len() as u64;
        Ok(())
    }

    pub async fn flush(&mut self) -> Result<(), Error> {
        self.file.flush().await.map_err(Error::disk("write an upload"))
    }

    pub async fn cancel(self) -> Result<(), Error> {
        fs::remove_file(&self.path).await.map_err(Error::disk("remove an upload"))
    }
}

/// A whole file; `None` when it is not there.
async fn read(path: &Path, operation: &'static str) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path).await {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::disk(operation)(error)),
    }
}

/// Writes a file so that a crash leaves the old one or the new one.
async fn write(place: PathBuf, name: &str, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(&place).await?;
    // Neither a tag nor a digest starts with a dot.
    let draft = place.join(format!(".{}", Uuid::new_v4()));
    let mut file = File::create_new(&draft).await?;
    file.write_all(content).await?;
    file.sync_all().await?;
    fs::rename(&draft, place.join(name)).await?;
    sync_folder(&place).await
}

/// Makes renames in a folder survive a crash, and the folder itself and its parent, which may be
/// new.
async fn sync_folder(place: &Path) -> io::Result<()> {
    for folder in place.ancestors().take(3) {
        File::open(folder).await?.sync_all().await?;
    }
    Ok(())
}

/// Removes uploads that nobody continued; answers how many are left.
async fn remove_stale(place: &Path) -> io::Result<usize> {
    let mut left = 0;
    let mut entries = fs::read_dir(place).await?;
    while let Some(entry) = entries.next_entry().await? {
        let age = entry.metadata().await.and_then(|metadata| metadata.modified());
        let age = age.map(|modified| modified.elapsed().unwrap_or_default());
        match age {
            Ok(age) if age > UPLOAD_AGE_MAX => {
                let _ = fs::remove_file(entry.path()).await;
            }
            _ => left += 1,
        }
    }
    Ok(left)
}

async fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path).await?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok(Digest::from_hasher(hasher));
        }
        hasher.update(&buffer[..read]);
    }
}
