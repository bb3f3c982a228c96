//! `wherry token create`: a bootstrap token, kept as Kubernetes keeps them (a Secret in
//! kube-system), with the cluster authority's fingerprint at its end so that the node or server
//! knows whom it joins. A token is for one of both (its group says which): with one for members a
//! server is told the cluster's keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use rand::RngExt as _;
use sha2::Digest as _;
use wherry_resources::join_token::JoinToken;

use crate::api::{self, Connection};
use crate::diagnostic::Diagnostic;

const NAMESPACE: &str = "kube-system";
/// A new cluster makes its first namespaces within a second or two of its start, on a busy machine
/// later.
const FURNISHED_WITHIN: Duration = Duration::from_secs(30);
/// Between two attempts until then.
const FURNISHED_PAUSE: Duration = Duration::from_millis(100);
const TOKEN_CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a token and print it
    Create {
        /// What joins with it: a node, or a server that becomes a member of the control plane
        #[arg(long = "for", value_name = "ROLE", value_enum, default_value_t = Joins::Node)]
        joins: Joins,
        /// How long it may be used to join, such as 30m [default: 24h for nodes, 1h for members]
        #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
        ttl: Option<Duration>,
        #[command(flatten)]
        cluster: api::Cluster,
    },
}

/// Who joins with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Joins {
    Node,
    Member,
}

impl Joins {
    fn group(self) -> &'static str {
        match self {
            Joins::Node => "system:bootstrappers:wherry:node",
            Joins::Member => "system:bootstrappers:wherry:member",
        }
    }

    /// A server joins while somebody stands beside it; nodes come when they are needed.
    fn ttl(self) -> Duration {
        match self {
            Joins::Node => Duration::from_secs(24 * 3600),
            Joins::Member => Duration::from_secs(3600),
        }
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    let ttl = Duration::try_from(span).map_err(|_| "it must not be negative".to_owned())?;
    match ttl.is_zero() {
        true => Err("it must be more than zero".to_owned()),
        false => Ok(ttl),
    }
}

pub fn main(verb: Verb) -> Result<(), Diagnostic> {
    let Verb::Create { joins, ttl, cluster } = verb;
    crate::roles::small_runtime()?.block_on(async {
        let connection = cluster.connect().await?;
        println!("{}", create(&connection, joins, ttl.unwrap_or(joins.ttl())).await?);
        Ok(())
    })
}

/// Makes a token: `<id>.<secret>.<SHA-256 of the cluster's CA certificate>`.
pub async fn create(
    connection: &Connection,
    joins: Joins,
    ttl: Duration,
) -> Result<String, Diagnostic> {
    let (id, secret) = (random_text(6), random_text(16));
    let ttl = jiff::SignedDuration::try_from(ttl).expect("a parsed duration fits");
    let expiration = jiff::Timestamp::now().saturating_add(ttl).expect("in range").to_string();
    let data = [
        ("token-id", id.as_str()),
        ("token-secret", &secret),
        ("expiration", &expiration),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        ("auth-extra-groups", joins.group()),
    ];
    let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{id}")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(connection.client.clone(), NAMESPACE);
    let begun = Instant::now();
    loop {
        match secrets.create(&PostParams::default(), &object).await {
            Ok(_) => break,
            Err(error) if is_too_early(&error) && begun.elapsed() < FURNISHED_WITHIN => {
                tokio::time::sleep(FURNISHED_PAUSE).await;
            }
            Err(error) => return Err(api::failed("making a join token")(error)),
        }
    }
    let pin = sha2::Sha256::digest(&connection.ca_der).into();
    Ok(JoinToken { bearer: format!("{id}.{secret}"), pin }.to_string())
}

/// Whether a server says that it has nowhere to keep a token yet: it has just been started.
fn is_too_early(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 404 | 503),
        _ => false,
    }
}

fn random_text(length: usize) -> String {
    let mut random = rand::rng();
    let pick = |_| char::from(TOKEN_CHARACTERS[random.random_range(0..TOKEN_CHARACTERS.len())]);
    (0..length).map(pick).collect()
}
