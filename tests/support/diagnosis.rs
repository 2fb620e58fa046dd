//! What `realpeer doctor` says on a host.

use serde_json::Value;

use super::{Host, Program};

/// Its exit code and its answer in JSON.
pub struct Diagnosis {
    pub code: i32,
    pub answer: Value,
}

impl Diagnosis {
    /// Runs the doctor.
    #[track_caller]
    pub fn of(host: &Host, flags: &[&str]) -> Diagnosis {
        let ended = Program::Realpeer.run(host, &[&["doctor", "-json"], flags].concat());
        let answer = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr));
        Diagnosis {
            code: ended.code,
            answer,
        }
    }

    /// Its checks.
    pub fn checks(&self) -> &Vec<Value> {
        self.answer["checks"].as_array().expect("checks")
    }

    /// Nothing is wrong.
    #[track_caller]
    pub fn assert_healthy(&self) {
        let ok = self.checks().iter().all(|check| check["status"] == "ok");
        assert!(ok && self.code == 0, "{:#?}", self.checks());
    }

    /// The only check that is not ok; it has this id and status, and says all of `words`.
    #[track_caller]
    pub fn assert_only(&self, id: &str, status: &str, words: &[&str]) -> &Value {
        let mut wrong = self.checks().iter().filter(|c| c["status"] != "ok");
        let (Some(check), None) = (wrong.next(), wrong.next()) else {
            panic!("{id} alone: {:#?}", self.checks());
        };
        assert_eq!(
            (&check["id"], &check["status"]),
            (&id.into(), &status.into()),
            "{check:#}"
        );
        assert_eq!(self.code, i32::from(status == "failed"), "{check:#}");
        let text = check.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} in {text}");
        }
        check
    }

    /// What the ok check of this id found.
    #[track_caller]
    pub fn found(&self, id: &str) -> &str {
        let check = self.checks().iter().find(|check| check["id"] == id);
        let check = check.unwrap_or_else(|| panic!("no {id}: {:#?}", self.checks()));
        check["found"].as_str().expect("found")
    }
}
