//! Things in the order of their last use. One list is both the timer of them all (the oldest end
//! first) and the order in which they make room for new ones; every step costs the same however
//! many there are.

use std::ops::Range;
use std::time::Instant;

/// The place of a thing, its own until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u32);

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Things of one kind, each with the time of its last use.
#[derive(Debug)]
pub struct Lru<T> {
    places: Vec<Place<T>>,
    /// Places that are free, to be used again.
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Place<T> {
    thing: Option<T>,
    used: Instant,
    older: u32,
    newer: u32,
}

impl Key {
    /// The key as a number, to be kept by the kernel.
    pub fn number(self) -> u64 {
        self.0.into()
    }

    /// The key that a number stands for.
    pub fn from_number(number: u64) -> Key {
        Key(u32::try_from(number).unwrap_or(NONE))
    }
}

impl<T> Lru<T> {
    /// Nothing yet.
    pub fn new() -> Lru<T> {
        Lru {
            places: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The numbers of all keys that there are, also of those whose place is free.
    pub fn places(&self) -> Range<u64> {
        0..self.places.len() as u64
    }

    /// Adds a thing, as the one last used.
    pub fn insert(&mut self, thing: T, now: Instant) -> Key {
        let place = Place {
            thing: Some(thing),
            used: now,
            older: NONE,
            newer: NONE,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.places[index as usize] = place;
                index
            }
            None => {
                self.places.push(place);
                (self.places.len() - 1) as u32
            }
        };
        self.append(index);
        Key(index)
    }

    /// Takes a thing out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let thing = self.places.get_mut(key.0 as usize)?.thing.take()?;
        self.unlink(key.0);
        self.free.push(key.0);
        Some(thing)
    }

    /// The thing at a place that may be free.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.places.get(key.0 as usize)?.thing.as_ref()
    }

    /// The thing at a place that may be free, which is used now.
    pub fn touch(&mut self, key: Key, now: Instant) -> Option<&mut T> {
        self.get(key)?;
        if self.newest != key.0 {
            self.unlink(key.0);
            self.append(key.0);
        }
        let place = &mut self.places[key.0 as usize];
        place.used = now;
        place.thing.as_mut()
    }

    /// The thing whose last use is longest ago, and when that was.
    pub fn oldest(&self) -> Option<(Key, Instant)> {
        let place = self.places.get(self.oldest as usize)?;
        Some((Key(self.oldest), place.used))
    }

    /// All of them with their last use, that of longest ago first.
    pub fn iter(&self) -> impl Iterator<Item = (&T, Instant)> {
        let place = |index: u32| self.places.get(index as usize);
        let places = std::iter::successors(place(self.oldest), move |last| place(last.newer));
        places.filter_map(|place| Some((place.thing.as_ref()?, place.used)))
    }

    fn append(&mut self, index: u32) {
        let last = std::mem::replace(&mut self.newest, index);
        match self.places.get_mut(last as usize) {
            Some(last) => last.newer = index,
            None => self.oldest = index,
        }
        let place = &mut self.places[index as usize];
        (place.older, place.newer) = (last, NONE);
    }

    fn unlink(&mut self, index: u32) {
        let Place { older, newer, .. } = self.places[index as usize];
        match self.places.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.places.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_one_unused_for_longest_comes_first() {
        let (start, mut lru) = (Instant::now(), Lru::new());
        let at = |s| start + Duration::from_secs(s);
        let keys: Vec<Key> = (0..4).map(|i| lru.insert(i, at(i))).collect();
        lru.touch(keys[0], at(10));
        lru.touch(keys[2], at(11));
        lru.touch(keys[2], at(12));
        assert_eq!(lru.remove(keys[3]), Some(3));
        assert_eq!(lru.remove(keys[3]), None);
        assert!(lru.touch(keys[3], at(13)).is_none());
        let mut order = Vec::new();
        while let Some((key, used)) = lru.oldest() {
            order.push((lru.remove(key).unwrap(), used));
        }
        assert_eq!(order, [(1, at(1)), (0, at(10)), (2, at(12))]);
        assert_eq!(lru.len(), 0);
    }

    #[test]
    fn places_are_used_again() {
        let (now, mut lru) = (Instant::now(), Lru::new());
        for i in 0..1000 {
            let key = lru.insert(i, now);
            lru.insert(i, now);
            lru.remove(key);
            if lru.len() == 4 {
                let (oldest, _) = lru.oldest().unwrap();
                lru.remove(oldest);
            }
        }
        assert_eq!((lru.len(), lru.places.len()), (3, 5));
    }
}
