//! Sealing opens only with the right key, at the right place, unchanged; keyrings come back from
//! their files.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn keyring(path: &Path) -> Keyring {
    Keyring::open_or_create(path, Cover::Everything).expect("the folder can be written to").0
}

#[test]
fn what_is_sealed_opens_at_its_place_and_nowhere_else() {
    let folder = folder();
    let keys = keyring(&folder.path().join("keys"));
    for plain in [&b""[..], b"value", &[7; 5000]] {
        let sealed = keys.seal(b"state\0a", plain).expect("it can be sealed");
        assert_eq!(sealed.len(), plain.len() + SEAL_BYTES);
        assert_eq!(keys.open_sealed(b"state\0a", &sealed).as_deref(), Ok(plain));
        assert_eq!(keys.open_sealed(b"state\0b", &sealed), Err(OpenSealError::Damaged));
    }
}

#[test]
fn any_changed_or_missing_byte_is_noticed() {
    let folder = folder();
    let keys = keyring(&folder.path().join("keys"));
    let sealed = keys.seal(b"place", b"value").expect("it can be sealed");
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 0x10;
        assert!(keys.open_sealed(b"place", &damaged).is_err(), "byte {at}");
        assert!(keys.open_sealed(b"place", &sealed[..at]).is_err(), "{at} bytes");
    }
}

/// A nonce must not come twice under one data key, nor a data key from an earlier start.
#[test]
fn nonces_and_data_keys_are_new_each_time() {
    let folder = folder();
    let path = folder.path().join("keys");
    let mut nonces = BTreeSet::new();
    let mut envelopes = BTreeSet::new();
    for _ in 0..3 {
        let keys = keyring(&path);
        for _ in 0..200 {
            let sealed = keys.seal(b"place", b"value").expect("it can be sealed");
            envelopes.insert(sealed[..ENVELOPE_BYTES].to_vec());
            let nonce = sealed[ENVELOPE_BYTES..ENVELOPE_BYTES + NONCE_BYTES].to_vec();
            assert!(nonces.insert(nonce), "a nonce came twice");
        }
    }
    assert_eq!(envelopes.len(), 3, "each start has its own data key");
}

#[test]
fn a_data_key_is_given_up_in_time() {
    let folder = folder();
    let keys = keyring(&folder.path().join("keys"));
    let first = keys.seal(b"place", b"value").expect("it can be sealed");
    keys.lock().sealing.as_mut().expect("it has sealed").seals = SEALS_MAX;
    let next = keys.seal(b"place", b"value").expect("it can be sealed");
    assert_ne!(first[..ENVELOPE_BYTES], next[..ENVELOPE_BYTES]);
    assert!(keys.open_sealed(b"place", &first).is_ok(), "the old one still opens");
}

#[test]
fn after_a_rotation_the_new_key_seals_and_the_old_one_opens() {
    let folder = folder();
    let path = folder.path().join("keys");
    let keys = keyring(&path);
    let old = keys.seal(b"place", b"value").expect("it can be sealed");
    let added = Keyring::rotate(&path).expect("the file can be written");
    assert!(keys.reload().expect("the file is sound"));
    assert!(!keys.reload().expect("the file is sound"), "nothing new");
    let new = keys.seal(b"place", b"value").expect("it can be sealed");
    assert_eq!(Keyring::key_of(&new), Some(added));
    assert_ne!(Keyring::key_of(&old), Some(added));
    for sealed in [&old, &new] {
        assert_eq!(keys.open_sealed(b"place", sealed).as_deref(), Ok(&b"value"[..]));
    }
    let flags: Vec<bool> = keys.keys().iter().map(|key| key.newest).collect();
    assert_eq!(flags, [false, true]);
}

/// A member that was not restarted opens what one with a newer key has sealed, once it has the
/// file.
#[test]
fn an_unknown_key_is_looked_for_in_the_file() {
    let folder = folder();
    let path = folder.path().join("keys");
    let keys = keyring(&path);
    Keyring::rotate(&path).expect("the file can be written");
    let sealed = keyring(&path).seal(b"place", b"value").expect("it can be sealed");
    assert!(keys.open_sealed(b"place", &sealed).is_ok());

    let other = keyring(&folder.path().join("others"));
    let unknown = OpenSealError::UnknownKey(keys.newest());
    assert_eq!(other.open_sealed(b"place", &sealed), Err(unknown));
}

/// A key taken out of the file while a process runs is one it may still need.
#[test]
fn a_running_process_forgets_no_key() {
    let folder = folder();
    let path = folder.path().join("keys");
    let keys = keyring(&path);
    let old = keys.seal(b"place", b"value").expect("it can be sealed");
    fs::remove_file(&path).expect("it is there");
    let replaced = keyring(&path);
    assert!(keys.reload().expect("the file is sound"));
    assert_eq!(keys.newest(), replaced.newest());
    assert!(keys.open_sealed(b"place", &old).is_ok());
}

#[test]
fn the_file_is_its_owners_alone() {
    let folder = folder();
    let path = folder.path().join("keys");
    keyring(&path);
    let mode = fs::metadata(&path).expect("it is there").mode() & 0o777;
    assert_eq!(mode, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let refused = Keyring::open(&path, Cover::Everything).expect_err("others can read it");
    let shown = refused.to_string();
    assert!(shown.contains("can be read by others than its owner (mode 640)"), "{shown}");
    assert!(shown.contains("chmod 600"), "{shown}");
}

#[test]
fn a_bad_file_is_refused_with_its_line() {
    let key = hex::encode([7; KEY_BYTES]);
    let name = Fingerprint::of(&[7; KEY_BYTES]);
    let check = |text: &str| match Keyring::parse(text, "keys", Cover::Everything) {
        Ok(keyring) => format!("{} keys", keyring.keys().len()),
        Err(error) => error.to_string().split(';').next().unwrap_or_default().to_owned(),
    };
    let good = format!("{FILE_HEAD}\n\n# comment\n{name} 1 {key}\n");
    let seen = [
        check(""),
        check("something else\n"),
        check(&format!("{FILE_HEAD}\n# comment\n")),
        check(&good),
        check(&format!("{good}{name} 1 {key}\n")),
        check(&format!("{FILE_HEAD}\n{name} 1\n")),
        check(&format!("{FILE_HEAD}\n{name} x {key}\n")),
        check(&format!("{FILE_HEAD}\n{name} 1 {}\n", &key[1..])),
        check(&format!("{FILE_HEAD}\n0000000000000000 1 {key}\n")),
    ];
    expect_test::expect![[r"
        keys, line 1: there is no key in it
        keys, line 1: this is not a keyring of Wherry's
        keys, line 3: there is no key in it
        1 keys
        keys, line 5: the same key is there twice
        keys, line 2: a key has three words
        keys, line 2: its second word is not a number
        keys, line 2: its third word is not 64 hex digits
        keys, line 2: the key does not match its fingerprint"]]
    .assert_eq(&seen.join("\n"));
}

#[test]
fn a_cover_is_by_prefix() {
    let cover = Cover::Prefixes(vec![b"/secrets\0".to_vec(), b"/configmaps\0".to_vec()]);
    let covered = [&b"/secrets\0a\0b"[..], b"/secretsx\0a\0b", b"/pods\0a\0b", b"/configmaps\0\0a"];
    assert_eq!(covered.map(|key| cover.covers(key)), [true, false, false, true]);
    assert!(Cover::Everything.covers(b"anything"));
}

#[test]
fn keys_are_never_shown() {
    let folder = folder();
    let keys = keyring(&folder.path().join("keys"));
    let text = keys.text();
    let secret = text.lines().last().and_then(|line| line.split(' ').next_back()).expect("a key");
    assert_eq!(secret.len(), 64);
    assert!(!format!("{keys:?}").contains(secret));
}
