//! A backup comes back as it was, at any size, and not at all once a bit of it has changed.

use std::path::Path;

use super::*;
use crate::keyring::Cover;
use crate::state::Root;

type Objects = Vec<(Bytes, Entry)>;

fn snapshot(objects: &Objects) -> Snapshot {
    let root: Root = objects.iter().cloned().collect();
    Snapshot { revision: 90, root }
}

fn objects(count: u64, value_bytes: usize) -> Objects {
    let object = |number: u64| {
        let kind = if number.is_multiple_of(3) { "secret" } else { "plain" };
        let key = Bytes::from(format!("{kind}/{number:05}"));
        let value = Bytes::from(format!("{number}-").repeat(value_bytes / 2 + 1));
        (key, Entry { value, created: number % 40, modified: 40 + number % 50 })
    };
    let mut objects: Objects = (0..count).map(object).collect();
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    objects
}

fn keyring(folder: &Path, name: &str) -> Arc<Keyring> {
    let cover = Cover::Prefixes(vec![b"secret/".to_vec()]);
    let (keys, _) = Keyring::open_or_create(&folder.join(name), cover).expect("it can be written");
    Arc::new(keys)
}

fn file(objects: &Objects, keys: Option<&Arc<Keyring>>, with_keyring: bool) -> Vec<u8> {
    let backup =
        Backup::new(snapshot(objects), (7, 1_700_000_000_000), keys.cloned(), with_keyring);
    let frames: Result<Vec<Bytes>, BackupError> = backup.collect();
    frames.expect("nothing stands against it").concat()
}

fn read(file: &[u8], keys: Option<&Keyring>) -> Result<(BackupContent, Objects), BackupError> {
    let mut found = Objects::new();
    let content = read_backup(file, keys, |object, value| -> Result<(), BackupError> {
        let value = value.unwrap_or_default();
        let (created, modified) = (object.created, object.modified);
        found.push((object.key.clone(), Entry { value, created, modified }));
        Ok(())
    })?;
    Ok((content, found))
}

fn contains(file: &[u8], part: &[u8]) -> bool {
    file.windows(part.len()).any(|window| window == part)
}

#[test]
fn it_comes_back_as_it_was() {
    for (count, value_bytes) in [(0, 0), (1, 0), (1, 1_500_000), (3000, 20), (40, 100_000)] {
        let objects = objects(count, value_bytes);
        let file = file(&objects, None, false);
        let (content, found) = read(&file, None).expect("it is sound");
        assert!(found == objects, "{count} objects of {value_bytes} bytes");
        let BackupHead { cluster_id, made_ms, revision, objects, key, .. } = content.head;
        let head = (cluster_id, made_ms, revision, objects, key);
        assert_eq!(head, (7, 1_700_000_000_000, 90, count, None));
        assert_eq!(content.sealed, 0);
        assert!(content.content_sha256.is_some());
    }
}

#[test]
fn covered_values_are_encrypted_in_it_and_the_rest_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let objects = objects(30, 40);
    let file = file(&objects, Some(&keys), false);
    for (key, entry) in &objects {
        let plain = key.starts_with(b"plain/");
        assert!(contains(&file, key));
        assert_eq!(contains(&file, &entry.value), plain, "{key:?}");
    }
    let (content, found) = read(&file, Some(&keys)).expect("it is sound");
    assert!(found == objects);
    assert_eq!((content.sealed, content.has_keyring), (10, false));
    assert_eq!(content.head.key, Some(keys.newest()));
    assert_eq!(content.keys, BTreeSet::from([keys.newest()]));

    let (without, _) = read(&file, None).expect("it can be checked without the keys");
    assert_eq!(without.content_sha256, None);
    assert_eq!(without.file_sha256, content.file_sha256);
    let other = keyring(folder.path(), "others");
    let refused = read(&file, Some(&other));
    assert!(matches!(refused, Err(BackupError::Key(key)) if key == keys.newest()), "{refused:?}");
}

/// The hash of the content is what two clusters are compared by.
#[test]
fn the_hash_of_the_content_knows_no_keys() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let mut objects = objects(30, 40);
    let hash = |objects: &Objects, keys: Option<&Arc<Keyring>>| {
        let file = file(objects, keys, false);
        read(&file, keys.map(|keys| &**keys)).expect("it is sound").0.content_sha256
    };
    assert_eq!(hash(&objects, None), hash(&objects, Some(&keys)));
    let before = hash(&objects, None);
    objects[7].1.modified += 1;
    assert_ne!(hash(&objects, None), before);
}

#[test]
fn a_keyring_travels_with_it_only_if_asked() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let objects = objects(9, 40);
    let without = file(&objects, Some(&keys), false);
    assert_eq!(keyring_of_backup(&*without).expect("it is sound"), None);
    let with = file(&objects, Some(&keys), true);
    let text = keyring_of_backup(&*with).expect("it is sound").expect("it carries the keyring");
    let carried = Keyring::parse(&text, "the backup", Cover::Everything).expect("it is sound");
    let (content, found) = read(&with, Some(&carried)).expect("it is sound");
    assert!(found == objects && content.has_keyring);
}

#[test]
fn it_says_where_its_keyring_lies_if_it_does_not_carry_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let objects = objects(9, 40);
    let place = |file: &[u8]| keyring_place_of_backup(file).expect("it is sound");
    let without = file(&objects, Some(&keys), false);
    assert_eq!(place(&without), Some(folder.path().join("keys")));
    let (content, found) = read(&without, Some(&keys)).expect("it is sound");
    assert!(found == objects && !content.has_keyring);
    assert_eq!(place(&file(&objects, Some(&keys), true)), None);
    assert_eq!(place(&file(&objects, None, false)), None);
    for at in 0..without.len() {
        let mut damaged = without.clone();
        damaged[at] ^= 0x10;
        assert!(read(&damaged, Some(&keys)).is_err(), "byte {at}");
    }
}

#[test]
fn a_key_that_comes_meanwhile_encrypts_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let before = keys.newest();
    let objects = objects(9, 40);
    let mut backup = Backup::new(snapshot(&objects), (7, 0), Some(keys.clone()), true);
    let first = backup.next().expect("it has a head").expect("nothing stands against it");
    Keyring::rotate(&folder.path().join("keys")).expect("it can be written");
    assert!(keys.reload().expect("it can be read"));
    let rest: Result<Vec<Bytes>, BackupError> = backup.collect();
    let file = [&first[..], &rest.expect("nothing stands against it").concat()].concat();

    let text = keyring_of_backup(&*file).expect("it is sound").expect("it carries the keyring");
    let carried = Keyring::parse(&text, "the backup", Cover::Everything).expect("it is sound");
    let (content, found) = read(&file, Some(&carried)).expect("it is sound");
    assert!(found == objects);
    assert_eq!((content.head.key, content.keys), (Some(before), BTreeSet::from([before])));
}

#[test]
fn any_changed_bit_and_any_cut_is_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let keys = keyring(folder.path(), "keys");
    let file = file(&objects(12, 10), Some(&keys), true);
    for keys in [Some(&*keys), None] {
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged, keys).is_err(), "bit {bit} of byte {at}");
            }
            assert!(read(&file[..at], keys).is_err(), "cut at {at}");
        }
        let longer = [&file[..], &[0]].concat();
        assert!(read(&longer, keys).is_err());
    }
}

#[test]
fn damage_is_told_with_its_place() {
    let file = file(&objects(2, 10), None, false);
    let tell = |file: &[u8]| read(file, None).expect_err("it is damaged").to_string();
    let mut flipped = file.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let mut long = file.clone();
    long[FIRST_LINE.len() + 3] = 0xff;
    let mut later = file.clone();
    later[FIRST_WORDS.len()] = b'2';
    let seen = [
        tell(b""),
        tell(&[b'x'; 100]),
        tell(&later),
        tell(&file[..last]),
        tell(&long),
        tell(&flipped),
    ];
    expect_test::expect![[r"
        this is not a backup of Wherry's
        this is not a backup of Wherry's
        this backup was made by another version of wherry; restore it with that one
        the backup is damaged at byte 203: it ends too early; nothing of it can be trusted, take another
        the backup is damaged at byte 24: a part of it is longer than any may be; nothing of it can be trusted, take another
        the backup is damaged at byte 199: its checksum does not match; nothing of it can be trusted, take another"]]
    .assert_eq(&seen.join("\n"));
}

/// Frames that were each written whole, in an order that nobody writes.
#[test]
fn parts_that_are_missing_or_doubled_are_noticed() {
    let objects = objects(3000, 200);
    let backup = Backup::new(snapshot(&objects), (7, 0), None, false);
    let frames: Vec<Bytes> = backup.map(|frame| frame.expect("it can be made")).collect();
    assert!(frames.len() > 4);
    let read = |order: &[usize]| {
        let file = order.iter().map(|part| frames[*part].clone()).collect::<Vec<_>>().concat();
        read_backup(&*file, None, |_, _| Ok::<(), BackupError>(()))
    };
    let whole: Vec<usize> = (0..frames.len()).collect();
    assert!(read(&whole).is_ok());
    for part in 1..frames.len() {
        let mut missing = whole.clone();
        missing.remove(part);
        assert!(read(&missing).is_err(), "without part {part}");
        let mut doubled = whole.clone();
        doubled.insert(part, part);
        assert!(read(&doubled).is_err(), "with part {part} twice");
    }
}
