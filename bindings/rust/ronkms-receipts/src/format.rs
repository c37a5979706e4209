//! The file's text: docs/spec/receipts.md, The file.

use crate::{base_kid, valid_text, Book, Error, Log, MAX_KEYS, MAX_LOGS, MAX_NUMBER, MAX_ORIGIN};
use std::fmt::Write;

const HEADER: &str = "ron-kms receipts 1";

impl Book {
    pub(crate) fn encode(&self) -> String {
        let mut lines = vec![HEADER.to_owned()];
        for (at, l) in self.logs.iter().enumerate() {
            let status = match (l.stopped, self.current == Some(at)) {
                (true, _) => "stopped",
                (false, true) => "current",
                (false, false) => "left",
            };
            lines.push(format!("log {} {} {} {}", l.origin, status, l.size, l.next));
        }
        let mut text = lines.join("\n") + "\n";
        for kid in self.order.values() {
            if let Some(k) = self.keys.get(kid) {
                // Writing to a String does not fail.
                let _ = writeln!(text, "key {} {} {}", kid, k.seq, k.index);
            }
        }
        text + "end\n"
    }

    /// Reads a file into a book that is empty.
    pub(crate) fn decode(&mut self, text: &str) -> Result<(), Error> {
        let body = text.strip_prefix(HEADER).and_then(|t| t.strip_prefix('\n')).ok_or(Error::Corrupt(1))?;
        let body = body.strip_suffix("end\n").ok_or(Error::Corrupt(text.lines().count()))?;
        if !body.is_empty() && !body.ends_with('\n') {
            return Err(Error::Corrupt(text.lines().count()));
        }
        let mut keys = 0;
        for (n, line) in body.split_terminator('\n').enumerate() {
            let fields: Vec<&str> = line.split(' ').collect();
            let read = match fields.as_slice() {
                ["log", origin, status, size, next] if keys == 0 => self.decode_log(origin, status, size, next),
                ["key", kid, seq, index] if keys < MAX_KEYS => {
                    keys += 1;
                    self.decode_key(kid, seq, index)
                }
                _ => None,
            };
            read.ok_or(Error::Corrupt(n + 2))?;
        }
        Ok(())
    }

    fn decode_log(&mut self, origin: &str, status: &str, size: &str, next: &str) -> Option<()> {
        let (size, next) = (parse_number(size)?, parse_number(next)?);
        if !valid_text(origin, MAX_ORIGIN) || self.find(origin).is_some() || self.logs.len() == MAX_LOGS {
            return None;
        }
        match (status, self.current) {
            ("current" | "stopped", None) => self.current = Some(self.logs.len()),
            ("left", _) => {}
            _ => return None,
        }
        self.logs.push(Log { origin: origin.to_owned(), stopped: status == "stopped", size, next });
        Some(())
    }

    fn decode_key(&mut self, kid: &str, seq: &str, index: &str) -> Option<()> {
        let (seq, index) = (parse_number(seq)?, parse_number(index)?);
        let log = self.logs.get(self.current?)?;
        let base = base_kid(kid).ok()?;
        if seq == 0 || index >= log.next || base.is_empty() || base != kid || self.keys.contains_key(kid) {
            return None;
        }
        self.rise(kid, seq, index);
        Some(())
    }
}

/// Reads the only spelling of a number below 2^63.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok().filter(|&n| n <= MAX_NUMBER)
}
