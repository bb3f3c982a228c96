//! `wherry push FILE.wasm [NAME[:TAG]]`: a Wasm file becomes an image, in the cluster's built-in
//! registry or, when the name begins with a host, in any other.
//!
//! What it was pushed as goes to stdout, the next step to stderr, so that a script can take the
//! first: `image=$(wherry push hello.wasm hello:1)`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use oci_client::RegistryOperation;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use wherry_node::agent::{LAYER_BYTES_MAX, Reference, Version, credentials, is_local};

use crate::api;
use crate::diagnostic::Diagnostic;
use crate::images::{self, Artifact, COMPONENT, MANIFEST_TYPE};

/// A registry that answers nothing for so long is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(30);

const MAGIC: &[u8] = b"\0asm";
/// What follows the magic number of a core module.
const CORE_MODULE: &[u8] = &[0x01, 0x00, 0x00, 0x00];
/// Names by which a component says that it answers requests.
const HANDLERS: &[&[u8]] = &[b"wasi:http/incoming-handler@", b"wasi:http/handler@"];

#[derive(clap::Args)]
pub struct Flags {
    /// The file: a component or a core module
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// What it is called: NAME[:TAG] in the cluster's built-in registry, HOST[:PORT]/NAME[:TAG] in
    /// another [default: the file's name; tag: latest]
    #[arg(value_name = "NAME[:TAG]", value_parser = Reference::parse)]
    image: Option<Reference>,
    /// Speak plain HTTP with a registry on this machine
    #[arg(long)]
    insecure: bool,
    /// Credentials of other registries, as `docker login` keeps them [default:
    /// ~/.docker/config.json]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    auth_file: Option<PathBuf>,
    #[command(flatten)]
    cluster: api::Cluster,
}

/// What is pushed where, checked.
struct Config {
    image: Reference,
    tag: String,
    wasm: Vec<u8>,
}

impl Config {
    fn of(flags: &Flags) -> Result<Config, Diagnostic> {
        let image = match &flags.image {
            Some(image) => image.clone(),
            None => named_after(&flags.file)?,
        };
        let Version::Tag(tag) = &image.version else {
            return Err(Diagnostic::usage("a digest cannot be chosen")
                .help("leave @sha256:… out; the push prints it"));
        };
        if flags.insecure && !image.host.as_deref().is_some_and(is_local) {
            return Err(Diagnostic::usage("--insecure is for registries on this machine")
                .why("nodes speak plain HTTP with localhost and 127.0.0.1 alone")
                .help("leave it out, or push to localhost:PORT/NAME"));
        }
        let wasm = std::fs::read(&flags.file).map_err(|error| unusable(&flags.file, error))?;
        check(&wasm).map_err(|why| unusable(&flags.file, io::Error::other(why)))?;
        Ok(Config { tag: tag.clone(), image, wasm })
    }
}

fn unusable(file: &Path, why: io::Error) -> Diagnostic {
    Diagnostic::new("WH0020", format!("{} cannot be pushed", file.display()))
        .why(why)
        .help("build it for Wasm:   cargo build --release --target wasm32-wasip2")
}

/// The image of a file that is given no name.
fn named_after(file: &Path) -> Result<Reference, Diagnostic> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = stem.to_lowercase().replace(|it: char| !it.is_ascii_alphanumeric(), "-");
    Reference::parse(&name).map_err(|_| {
        Diagnostic::usage(format!("{} does not name an image", file.display()))
            .help("name it:   wherry push FILE.wasm NAME:TAG")
    })
}

/// Says why this is nothing that a node could run.
fn check(wasm: &[u8]) -> Result<(), String> {
    if wasm.len() as u64 > LAYER_BYTES_MAX {
        let bytes = wasm.len();
        return Err(format!("it has {bytes} bytes; nodes take at most {LAYER_BYTES_MAX}"));
    }
    match (wasm.get(..4), wasm.get(4..8)) {
        (Some(MAGIC), Some(CORE_MODULE | COMPONENT)) => Ok(()),
        (Some(MAGIC), _) => Err("it is Wasm of a version that nodes do not know".to_owned()),
        _ if wasm.trim_ascii_start().starts_with(b"(") => {
            Err("it is Wasm as text; `wasm-tools parse` makes it binary".to_owned())
        }
        _ => Err("it is not Wasm: it does not begin with \\0asm".to_owned()),
    }
}

pub fn main(flags: Flags) -> Result<(), Diagnostic> {
    let config = Config::of(&flags)?;
    let next = next(&config);
    let shown = format!("{}:{}", config.image.repository(), config.tag);
    let Config { image, tag, wasm } = config;
    let artifact = Artifact::of(wasm);
    let digest = artifact.digest();
    crate::roles::small_runtime()?.block_on(async {
        match &image.host {
            Some(host) => push_elsewhere(&flags, host, &image.name, &tag, artifact).await,
            None => {
                let connection = flags.cluster.connect().await?;
                images::push(&connection.client, &image.name, &tag, artifact).await
            }
        }
    })?;
    println!("{shown}@{digest}");
    eprintln!("  {next}");
    Ok(())
}

/// The command that makes it run: one that answers requests stays, any other ends once.
fn next(config: &Config) -> String {
    let serves = HANDLERS.iter().any(|name| {
        let mut places = config.wasm.windows(name.len());
        places.any(|place| place == *name)
    });
    let how = if serves { "--port=80" } else { "--restart=Never" };
    let Config { image, tag, .. } = config;
    let last = image.name.rsplit('/').next().unwrap_or(&image.name);
    let pod = last.replace(['.', '_'], "-");
    format!("kubectl run {pod} --image={}:{tag} {how}", image.repository())
}

async fn push_elsewhere(
    flags: &Flags,
    host: &str,
    name: &str,
    tag: &str,
    artifact: Artifact,
) -> Result<(), Diagnostic> {
    let protocol = if flags.insecure { ClientProtocol::Http } else { ClientProtocol::Https };
    let auth = auth(flags, host, name)?;
    let client = oci_client::Client::new(ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(IDLE_MAX),
        // All registries take a blob in one piece.
        use_monolithic_push: true,
        ..ClientConfig::default()
    });
    let image = oci_client::Reference::with_tag(host.to_owned(), name.to_owned(), tag.to_owned());
    let pushed = async {
        client.auth(&image, &auth, RegistryOperation::Push).await?;
        for blob in [artifact.config, artifact.layer] {
            let digest = images::digest(&blob);
            client.push_blob(&image, blob, &digest).await?;
        }
        let media_type = HeaderValue::from_static(MANIFEST_TYPE);
        client.push_manifest_raw(&image, artifact.manifest, media_type).await
    };
    pushed.await.map_err(|error| refusal(host, name, flags.insecure, error))?;
    Ok(())
}

/// What is shown to a registry; nothing where nobody has logged in.
fn auth(flags: &Flags, host: &str, name: &str) -> Result<RegistryAuth, Diagnostic> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker/config.json"));
    let read = match (&flags.auth_file, home()) {
        (Some(file), _) => std::fs::read(file).map_err(|error| {
            Diagnostic::new("WH0021", format!("cannot read the credentials {}", file.display()))
                .why(error)
                .help("name the file that `docker login` wrote, or leave --auth-file out")
        })?,
        (None, Some(file)) => std::fs::read(file).unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    let mut found = credentials(&[read], host, name).into_iter();
    Ok(found.next().unwrap_or(RegistryAuth::Anonymous))
}

fn refusal(host: &str, name: &str, insecure: bool, error: OciDistributionError) -> Diagnostic {
    use OciDistributionError as E;
    let headline = |text: String| Diagnostic::new("WH0021", text);
    match error {
        E::UnauthorizedError { .. }
        | E::AuthenticationFailure(_)
        | E::ServerError { code: 401 | 403, .. } => {
            headline(format!("{host} does not let you push {name}"))
                .why(error)
                .help(format!("log in:   docker login {host}"))
                .help("name a file with credentials:   --auth-file FILE")
        }
        E::RequestError(error) => {
            let diagnostic = headline(format!("{host} cannot be reached")).why(error);
            match is_local(host) && !insecure {
                true => diagnostic.help("a registry without TLS on this machine wants --insecure"),
                false => diagnostic.help("see whether it runs, and whether the name is right"),
            }
        }
        error => headline(format!("{host} did not take {name}"))
            .why(error)
            .help("the registry's log may say more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(wasm: &[u8]) -> String {
        check(wasm).err().unwrap_or("taken".to_owned())
    }

    #[test]
    fn only_wasm_is_taken() {
        assert_eq!(said(b"\0asm\x01\0\0\0rest"), "taken");
        assert_eq!(said(b"\0asm\x0d\0\x01\0rest"), "taken");
        assert_eq!(said(b"\0asm\x02\0\0\0"), "it is Wasm of a version that nodes do not know");
        assert_eq!(said(b"\0asm"), "it is Wasm of a version that nodes do not know");
        assert_eq!(said(b" (module)"), "it is Wasm as text; `wasm-tools parse` makes it binary");
        assert_eq!(said(b"\x7fELF"), "it is not Wasm: it does not begin with \\0asm");
        assert_eq!(said(b""), "it is not Wasm: it does not begin with \\0asm");
    }

    fn next_of(image: &str, wasm: &[u8]) -> String {
        let image = Reference::parse(image).expect(image);
        next(&Config { tag: image.version().to_owned(), image, wasm: wasm.to_vec() })
    }

    #[test]
    fn the_next_step_fits_what_was_pushed() {
        let handler = b"\0asm\x0d\0\x01\0 wasi:http/incoming-handler@0.2.0 ";
        assert_eq!(next_of("hello", handler), "kubectl run hello --image=hello:latest --port=80");
        assert_eq!(
            next_of("ghcr.io/team/my_job:1", b"\0asm\x01\0\0\0"),
            "kubectl run my-job --image=ghcr.io/team/my_job:1 --restart=Never"
        );
    }

    #[test]
    fn a_file_names_its_image() {
        let name = |file: &str| named_after(Path::new(file)).map(|image| image.name);
        assert_eq!(name("target/Hello_World.wasm").expect("a name"), "hello-world");
        assert!(name("/").is_err());
        assert!(name("_.wasm").is_err());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let refused = |code| {
            let (url, message) = ("http://r/v2/".to_owned(), "no".to_owned());
            let error = OciDistributionError::ServerError { code, url, message };
            refusal("r.io", "a", false, error).to_string()
        };
        expect_test::expect![[r"
            error[WH0021]: r.io does not let you push a
            why:  Server error: url http://r/v2/, code: 401, message: no
            help: log in:   docker login r.io
              or: name a file with credentials:   --auth-file FILE"]]
        .assert_eq(&refused(401));
        expect_test::expect![[r"
            error[WH0021]: r.io did not take a
            why:  Server error: url http://r/v2/, code: 500, message: no
            help: the registry's log may say more"]]
        .assert_eq(&refused(500));
    }
}
