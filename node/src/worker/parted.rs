//! A map whose copies share what is the same in them.
//!
//! What requests read is replaced as a whole, so that they need no lock. With ten thousand Pods a copy
//! of all for each one that starts would take milliseconds: here it is one pointer for each part, and a
//! change copies only the part that it is in.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::Arc,
};

/// Of ten thousand entries a part has some eighty.
const PARTS: usize = 128;
/// So few are in one part: there is a map for each namespace, and most have a Service or two.
const ALONE_MAX: usize = 64;

/// See the header.
#[derive(Clone)]
pub struct Parted<K, V> {
    parts: Vec<Arc<HashMap<K, V>>>,
    hasher: RandomState,
}

impl<K, V> Default for Parted<K, V> {
    fn default() -> Parted<K, V> {
        Parted { parts: vec![Arc::default()], hasher: RandomState::new() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Parted<K, V> {
    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        self.hasher.hash_one(key) as usize % self.parts.len()
    }

    /// What is at a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.parts[self.part(key)].get(key)
    }

    /// Whether there is something at a key.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).is_some()
    }

    /// Puts something at a key; returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.parts.len() == 1 && self.parts[0].len() >= ALONE_MAX {
            let alone = std::mem::replace(&mut self.parts, vec![Arc::default(); PARTS]);
            for (key, value) in alone[0].iter() {
                self.insert(key.clone(), value.clone());
            }
        }
        let part = self.part(&key);
        Arc::make_mut(&mut self.parts[part]).insert(key, value)
    }

    /// Takes away what is at a key.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.contains_key(key) {
            return None;
        }
        let part = self.part(key);
        Arc::make_mut(&mut self.parts[part]).remove(key)
    }

    /// Everything, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.values())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_in_one_part() {
        let mut map = Parted::<usize, usize>::default();
        for number in 0..=ALONE_MAX {
            assert_eq!(map.parts.len(), 1);
            assert_eq!(map.insert(number, number), None);
        }
        assert_eq!((map.parts.len(), map.values().count()), (PARTS, ALONE_MAX + 1));
        assert!((0..=ALONE_MAX).all(|number| map.get(&number) == Some(&number)));
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut map = Parted::<String, usize>::default();
        assert!(map.is_empty());
        for number in 0..1_000 {
            assert_eq!(map.insert(number.to_string(), number), None);
        }
        let copy = map.clone();
        assert_eq!(map.insert("7".to_owned(), 0), Some(7));
        assert_eq!(map.remove("8"), Some(8));
        assert_eq!(map.remove("8"), None);
        assert_eq!((map.get("7"), map.contains_key("8")), (Some(&0), false));
        assert_eq!((copy.get("7"), copy.contains_key("8")), (Some(&7), true));
        assert_eq!((map.values().count(), copy.values().count()), (999, 1_000));
        let shared =
            map.parts.iter().zip(&copy.parts).filter(|(one, other)| Arc::ptr_eq(one, other));
        assert!(shared.count() >= PARTS - 2, "the other parts are shared");
    }
}
