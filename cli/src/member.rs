//! `wherry member`: who the control plane's members are, and changing that.

use std::fmt::Write as _;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{self, Connection};
use crate::diagnostic::Diagnostic;

const MEMBERS: &str = "/wherry/v1/members";
const LEADER: &str = "/wherry/v1/leader";
/// Between two columns, as kubectl has it.
const GAP: &str = "   ";

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show every member: its role, how far it is, and the hash of its state
    List {
        #[command(flatten)]
        cluster: api::Cluster,
    },
    /// Take a member out of the control plane for good
    Remove {
        /// Its name or its id
        member: String,
        #[command(flatten)]
        cluster: api::Cluster,
    },
    /// Let another member lead
    Transfer {
        /// The name or id of the next leader [default: the one that is furthest]
        member: Option<String>,
        #[command(flatten)]
        cluster: api::Cluster,
    },
}

/// A member, as the API tells it.
#[derive(Deserialize)]
struct Member {
    name: String,
    id: u64,
    role: String,
    address: String,
    applied: Option<u64>,
    hash: Option<String>,
    quarantined: Option<String>,
    #[serde(default)]
    disk_full: bool,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<Member>,
}

pub fn main(verb: Verb) -> Result<(), Diagnostic> {
    crate::roles::small_runtime()?.block_on(async {
        match verb {
            Verb::List { cluster } => {
                print!("{}", table(&list(&cluster.connect().await?).await?));
                Ok(())
            }
            Verb::Remove { member, cluster } => remove(&cluster.connect().await?, &member).await,
            Verb::Transfer { member, cluster } => {
                transfer(&cluster.connect().await?, member.as_deref()).await
            }
        }
    })
}

async fn list(connection: &Connection) -> Result<Vec<Member>, Diagnostic> {
    let what = "listing the members";
    let members: Members = send(connection, Method::GET, MEMBERS, Value::Null, what).await?;
    Ok(members.members)
}

/// Whether the member of that name votes.
pub async fn votes(connection: &Connection, name: &str) -> Result<bool, Diagnostic> {
    let members = list(connection).await?;
    Ok(members.iter().any(|member| member.name == name && member.role != "learner"))
}

/// Removes the member of that name, if there is one.
pub async fn forget(connection: &Connection, name: &str) -> Result<(), Diagnostic> {
    let members = list(connection).await?;
    match members.iter().find(|member| member.name == name) {
        Some(found) => delete(connection, found).await,
        None => Ok(()),
    }
}

async fn delete(connection: &Connection, member: &Member) -> Result<(), Diagnostic> {
    let path = format!("{MEMBERS}/{}", member.id);
    let what = format!("removing member {}", member.name);
    let _: Value = send(connection, Method::DELETE, &path, Value::Null, &what).await?;
    Ok(())
}

async fn remove(connection: &Connection, member: &str) -> Result<(), Diagnostic> {
    let members = list(connection).await?;
    let found = find(&members, member)?;
    delete(connection, found).await?;
    println!(
        "member {} (id {}) removed; stop its server and empty its folder",
        found.name, found.id
    );
    Ok(())
}

async fn transfer(connection: &Connection, member: Option<&str>) -> Result<(), Diagnostic> {
    let members = list(connection).await?;
    let to = member.map(|member| find(&members, member)).transpose()?.map(|found| found.id);
    let what = "changing the leader";
    let body = json!({ "member": to });
    let answer: Value = send(connection, Method::POST, LEADER, body, what).await?;
    let leader = answer["leader"].as_u64().unwrap_or_default();
    let name = members.iter().find(|member| member.id == leader).map_or("?", |found| &found.name);
    println!("member {name} (id {leader}) leads");
    Ok(())
}

async fn send<T: serde::de::DeserializeOwned>(
    connection: &Connection,
    method: Method,
    path: &str,
    body: Value,
    what: &str,
) -> Result<T, Diagnostic> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .expect("constant paths and numbers make valid requests");
    connection.client.request(request).await.map_err(api::failed(what))
}

/// The member of that name or id.
fn find<'a>(members: &'a [Member], asked: &str) -> Result<&'a Member, Diagnostic> {
    let named: Vec<&Member> = members.iter().filter(|member| member.name == asked).collect();
    if let [one] = named.as_slice() {
        return Ok(*one);
    }
    let id = asked.parse().ok();
    let by_id = members.iter().find(|member| Some(member.id) == id);
    by_id.ok_or_else(|| {
        let names: Vec<String> =
            members.iter().map(|member| format!("{} ({})", member.name, member.id)).collect();
        let headline = match named.len() {
            0 => format!("there is no member {asked:?}"),
            _ => format!("several members have the name {asked:?}"),
        };
        Diagnostic::usage(headline)
            .why(format!("the members are {}", names.join(", ")))
            .help("name it by its id:   wherry member list")
    })
}

/// The members as kubectl would print them; what is wrong with one follows its row.
fn table(members: &[Member]) -> String {
    let header = ["NAME", "ID", "ROLE", "ADDRESS", "APPLIED", "HASH"].map(str::to_owned);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = members.iter().map(|member| {
        [
            member.name.clone(),
            member.id.to_string(),
            member.role.clone(),
            member.address.clone(),
            or_dash(member.applied.map(|applied| applied.to_string())),
            or_dash(member.hash.clone()),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let remarks = members.iter().map(|member| match (&member.quarantined, member.applied) {
        (Some(why), _) => format!("{GAP}quarantined: {why}"),
        (None, None) => format!("{GAP}does not answer"),
        (None, Some(_)) if member.disk_full => format!("{GAP}its disk is nearly full"),
        (None, Some(_)) => String::new(),
    });
    let mut text = String::new();
    for (row, remark) in rows.iter().zip(std::iter::once(String::new()).chain(remarks)) {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
            format!("{cell:width$}")
        });
        let line = cells.collect::<Vec<_>>().join(GAP);
        let _ = writeln!(text, "{}", format!("{line}{remark}").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        let member = |id: u64, name: &str, role: &str| Member {
            name: name.to_owned(),
            id,
            role: role.to_owned(),
            address: format!("10.0.0.{id}:6443"),
            applied: Some(1204),
            hash: Some("00ff".repeat(8)),
            quarantined: None,
            disk_full: id == 1,
        };
        let mut members =
            vec![member(1, "a", "leader"), member(7, "b", "voter"), member(12, "c", "learner")];
        members[1].quarantined = Some("its state at 1100 differs".to_owned());
        (members[2].applied, members[2].hash) = (None, None);
        members
    }

    #[test]
    fn the_table() {
        expect_test::expect![[r#"
            NAME   ID   ROLE      ADDRESS          APPLIED   HASH
            a      1    leader    10.0.0.1:6443    1204      00ff00ff00ff00ff00ff00ff00ff00ff   its disk is nearly full
            b      7    voter     10.0.0.7:6443    1204      00ff00ff00ff00ff00ff00ff00ff00ff   quarantined: its state at 1100 differs
            c      12   learner   10.0.0.12:6443   -         -                                  does not answer
        "#]]
        .assert_eq(&table(&members()));
    }

    #[test]
    fn members_are_found_by_name_or_id() {
        let members = members();
        assert_eq!(find(&members, "b").map(|member| member.id).ok(), Some(7));
        assert_eq!(find(&members, "12").map(|member| member.name.as_str()).ok(), Some("c"));
        let error = find(&members, "d").map(|member| member.id).expect_err("nobody");
        assert!(error.to_string().contains("the members are a (1), b (7), c (12)"), "{error}");
    }
}
