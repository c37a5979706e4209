#![allow(clippy::unwrap_used)]

use super::*;

const KID: &str = "acme/audit/ed25519/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90";

fn receipt(log_index: u64, key_seq: u64, checkpoint_size: u64) -> Receipt<'static> {
    Receipt { log: "log", log_index, key_seq, checkpoint_size }
}

#[test]
fn concurrent_answers_may_change_places() {
    let mut book = Book::new(Options::default()).unwrap();
    let (a, b) = (book.mark(), book.mark());
    book.check(b, KID, &receipt(11, 2, 9)).unwrap();
    book.check(a, KID, &receipt(10, 1, 8)).unwrap();
}

#[test]
fn later_answers_may_not_go_back() {
    let mut book = Book::new(Options::default()).unwrap();
    book.check(book.mark(), KID, &receipt(11, 2, 9)).unwrap();
    let e = book.check(book.mark(), KID, &receipt(10, 1, 8)).unwrap_err();
    assert!(matches!(e, Error::Rollback(Reason::Index)), "{e}");
    let e = book.check(book.mark(), KID, &receipt(12, 3, 12)).unwrap_err();
    assert!(matches!(e, Error::Rollback(Reason::Stopped)), "{e}");
}

#[test]
fn a_mark_of_another_generation_knows_nothing() {
    let mut book = Book::new(Options::default()).unwrap();
    book.check(book.mark(), KID, &receipt(11, 2, 9)).unwrap();
    let old = book.mark();
    book.forget("log").unwrap();
    book.check(old, KID, &receipt(3, 1, 2)).unwrap();
}
