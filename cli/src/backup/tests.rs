//! What people see.

use std::collections::{BTreeMap, BTreeSet};

use wherry_control_plane::backup::{BackupContent, BackupHead, Kind};

use super::*;

fn content(content_sha256: Option<&str>) -> BackupContent {
    BackupContent {
        head: BackupHead {
            program: "0.1.0".to_owned(),
            cluster_id: 0x5f3a_90c1_0000_0000_0000_0000_0000_0007,
            made_ms: 1_700_000_000_000,
            revision: 12_345,
            objects: 3,
            key: None,
        },
        bytes: 4_000,
        sealed: 0,
        keys: BTreeSet::new(),
        has_keyring: false,
        file_sha256: "aa".repeat(32),
        content_sha256: content_sha256.map(str::to_owned),
    }
}

#[test]
fn a_backup_is_described() {
    let kinds = BTreeMap::from([
        ("/pods".to_owned(), Kind { objects: 2, bytes: 3_900, encrypted: 0 }),
        ("apps/deployments".to_owned(), Kind { objects: 1, bytes: 100, encrypted: 0 }),
    ]);
    let inspection = Inspection { content: content(Some("bb")), kinds };
    expect_test::expect![[r"
        made       2023-11-14T22:13:20Z by wherry 0.1.0
        cluster    5f3a90c1000000000000000000000007
        revision   12345
        objects    3
        encrypted  nothing
        file       sha256 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        content    sha256 bb

        TYPE                                                 OBJECTS        BYTES ENCRYPTED
        pods                                                       2         3900         0
        apps/deployments                                           1          100         0
    "]]
    .assert_eq(&described(&inspection));
}

#[test]
fn what_was_restored_is_told_with_the_next_step() {
    let restored =
        RestoredCluster { content: content(Some("bb")), cluster_id: 9, revision: 1_000_012_345 };
    expect_test::expect![[r"
        restored 3 objects of revision 12345 into /data
        new cluster 00000000000000000000000000000009, its revisions begin at 1000012345
        start it:   wherry server --data-dir /data
        the authorities are new: use its admin.kubeconfig, let nodes join with new tokens
    "]]
    .assert_eq(&told(&restored, Path::new("/data"), false));
}

#[test]
fn failures_say_what_to_do() {
    let damaged = BackupError::Damaged { at: 7, why: "it ends too early".to_owned() };
    let damaged = unusable(Path::new("a.backup"), RestoreFailed::Backup(damaged));
    let full = unusable(Path::new("a.backup"), RestoreFailed::NotEmpty("/data".into()));
    let source = io::Error::from(io::ErrorKind::NotFound);
    let none = RestoreFailed::File { what: "read", path: "a.backup".into(), source };
    let none = unusable(Path::new("a.backup"), none);
    expect_test::expect![[r"
        error[WH0042]: a.backup is not a usable backup
        why:  the backup is damaged at byte 7: it ends too early; nothing of it can be trusted, take another
        help: take another one; each can be checked:   wherry backup inspect FILE
        error[WH0043]: a.backup cannot be restored
        why:  the folder /data is not empty; restore into a new one
        help: restore into a new folder:   --data-dir DIR
        error[WH0042]: a.backup is not a usable backup
        why:  cannot read a.backup: entity not found
        help: name a file that `wherry backup save` has made"]]
    .assert_eq(&format!("{damaged}\n{full}\n{none}"));
}
