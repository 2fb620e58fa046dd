//! The stream of decisions: `{"deleted":[…],"new":[…]}`, read piece by piece, so that a million take
//! no more memory than one.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// Bytes of an answer, unpacked. A million decisions take about 200 MB.
const LONGEST: u64 = 2 << 30;

/// Bytes of one decision, and of what stands between two.
const LONGEST_DECISION: usize = 64 << 10;

/// A decision as the engine tells it; what else it says of it is ignored.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// Its number at this engine.
    pub id: u64,
    /// Who decided.
    #[serde(default)]
    pub origin: String,
    /// Why.
    #[serde(default)]
    pub scenario: String,
    /// What kind of thing `value` is.
    #[serde(default)]
    pub scope: String,
    /// What to do: `ban`, `captcha` ...
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Whom it is about.
    #[serde(default)]
    pub value: String,
    /// The time left, as Go prints it.
    #[serde(default)]
    pub duration: String,
}

/// What changes.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It holds from now on.
    New(Item),
    /// It does not hold any more.
    Deleted(Item),
}

/// Reads an answer to its end and hands over each change as it comes. After an error, what was
/// handed over is true all the same, and more is missing.
pub fn read(input: impl Read, mut sink: impl FnMut(Change)) -> serde_json::Result<()> {
    let since = Rc::new(Cell::new(0));
    let input = Metered {
        inner: BufReader::with_capacity(64 << 10, input),
        since: Rc::clone(&since),
        left: LONGEST,
    };
    let mut hand_over = |change| {
        since.set(0);
        sink(change);
    };
    let mut json = serde_json::Deserializer::from_reader(input);
    json.deserialize_map(Answer(&mut hand_over))?;
    json.end()
}

/// Breaks off when one decision, or the whole, is too long.
struct Metered<R> {
    inner: BufReader<R>,
    since: Rc<Cell<usize>>,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.since.set(self.since.get() + count);
        self.left = self.left.saturating_sub(count as u64);
        if self.since.get() > LONGEST_DECISION || self.left == 0 {
            return Err(io::Error::other("it is too long"));
        }
        Ok(count)
    }
}

struct Answer<'s>(&'s mut dyn FnMut(Change));

impl<'de> Visitor<'de> for Answer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the lists \"new\" and \"deleted\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "new" => {
                    let sink = &mut |item| (self.0)(Change::New(item));
                    map.next_value_seed(List(sink))?;
                    seen += 1;
                }
                "deleted" => {
                    let sink = &mut |item| (self.0)(Change::Deleted(item));
                    map.next_value_seed(List(sink))?;
                    seen += 1;
                }
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        match seen {
            2 => Ok(()),
            _ => Err(de::Error::custom(
                "it lacks the lists \"new\" and \"deleted\"",
            )),
        }
    }
}

/// A list of decisions, or null.
struct List<'s>(&'s mut dyn FnMut(Item));

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of decisions, or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: impl Read) -> (Vec<Change>, Result<(), String>) {
        let mut all = Vec::new();
        let result = read(text, |change| all.push(change));
        (all, result.map_err(|error| error.to_string()))
    }

    /// As 1.4.6 says it, and with what later engines may add.
    const ANSWER: &str = r#"{"links":{"more":[1]},"deleted":[{"duration":"-1.2s","id":6,"origin":"cscli",
        "scenario":"b","scope":"Ip","type":"ban","value":"203.0.113.7","uuid":"x","simulated":false}],
        "new":[{"duration":"9m58.4s","id":2,"origin":"CAPI","scenario":"l","scope":"Range","type":"ban",
        "value":"10.9.0.0/24"}]}"#;

    #[test]
    fn changes_are_read_and_unknown_fields_ignored() {
        let (all, result) = read_all(ANSWER.as_bytes());
        assert_eq!(result, Ok(()));
        let [Change::Deleted(first), Change::New(second)] = &all[..] else {
            panic!("{all:?}")
        };
        assert_eq!((first.id, first.duration.as_str()), (6, "-1.2s"));
        assert_eq!((second.id, second.value.as_str()), (2, "10.9.0.0/24"));
        let (all, result) = read_all(&br#"{"deleted":null,"new":null}"#[..]);
        assert_eq!((all.len(), result), (0, Ok(())));
    }

    #[test]
    fn whatever_is_cut_or_no_answer_is_an_error() {
        for end in 0..ANSWER.len() {
            let (_, result) = read_all(&ANSWER.as_bytes()[..end]);
            assert!(result.is_err(), "{end}");
        }
        for text in [
            "{}",
            "null",
            "[]",
            "<html>",
            r#"{"new":[]}"#,
            r#"{"new":[],"deleted":3}"#,
            r#"{"new":[{}],"deleted":null}"#,
        ] {
            assert!(read_all(text.as_bytes()).1.is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_or_blank_without_end_is_given_up() {
        for (start, byte) in [("{\"new\":[{\"value\":\"", b'x'), ("{\"new\":", b' ')] {
            let (_, result) = read_all(start.as_bytes().chain(io::repeat(byte)));
            assert!(result.unwrap_err().contains("too long"), "{start}");
        }
    }
}
