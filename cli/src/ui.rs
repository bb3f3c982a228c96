//! `wherry ui`: opens the dashboard, signed in.
//!
//! The verb asks the API server, as the kubeconfig's user, for a code that can be used once within
//! a minute; the dashboard exchanges it for a session cookie of that same user. No credential
//! reaches the browser's address bar or storage.

use kube::client::Body;

use crate::api;
use crate::diagnostic::Diagnostic;

#[derive(clap::Args)]
pub struct Flags {
    /// Print the address only, open no browser
    #[arg(long)]
    no_open: bool,
    #[command(flatten)]
    cluster: api::Cluster,
}

#[derive(serde::Deserialize)]
struct Code {
    code: String,
}

pub fn main(flags: Flags) -> Result<(), Diagnostic> {
    crate::roles::small_runtime()?.block_on(open(flags))
}

async fn open(flags: Flags) -> Result<(), Diagnostic> {
    let connection = flags.cluster.connect().await?;
    let request = http::Request::post("/ui/codes").body(Body::empty());
    let request = request.expect("a constant request is well formed");
    let code: Code = connection
        .client
        .request(request.map(|_| Vec::new()))
        .await
        .map_err(api::failed("signing in to the dashboard"))?;
    let url = format!("{}ui/#code={}", with_slash(&connection.url), code.code);
    println!("{url}");
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    if flags.no_open || !terminal {
        return Ok(());
    }
    if let Err(error) = webbrowser::open(&url) {
        eprintln!("no browser could be started ({error}); open the address yourself");
    }
    Ok(())
}

fn with_slash(url: &str) -> String {
    format!("{}/", url.trim_end_matches('/'))
}
