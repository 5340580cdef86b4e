//! Two snapshots become their difference, in time proportional to it where one was made from the other.

use std::cmp::Ordering;
use std::iter;
use std::sync::Arc;

use super::member::Member;
use super::member_list::{Chunk, MemberList};
use crate::instance::Address;

/// What became of one address between an old snapshot and a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference<'a> {
    /// The old one alone has it.
    Left(&'a Member),
    /// The new one alone has it.
    Joined(&'a Member),
    /// Both have it, and something about it changed.
    Changed(&'a Member, &'a Member),
}

impl<'a> Difference<'a> {
    pub(crate) fn address(&self) -> &'a Address {
        match self {
            Self::Left(member) | Self::Joined(member) | Self::Changed(_, member) => member.address(),
        }
    }
}

/// A merge join, lazy and without allocation, that yields each address that differs, in order.
pub(super) fn diff<'a>(old: &'a MemberList, new: &'a MemberList) -> impl Iterator<Item = Difference<'a>> {
    let (mut old, mut new) = (Cursor::new(old), Cursor::new(new));
    iter::from_fn(move || {
        loop {
            skip_shared(&mut old, &mut new);
            let order = match (old.peek(), new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) if Arc::ptr_eq(old.shared_instance(), new.shared_instance()) => Ordering::Equal,
                (Some(old), Some(new)) => old.address().cmp(new.address()),
            };
            match order {
                Ordering::Less => return old.take().map(Difference::Left),
                Ordering::Greater => return new.take().map(Difference::Joined),
                Ordering::Equal => match (old.take()?, new.take()?) {
                    (old, new) if old == new => {}
                    (old, new) => return Some(Difference::Changed(old, new)),
                },
            }
        }
    })
}

impl PartialEq for MemberList {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && diff(self, other).next().is_none()
    }
}

impl Eq for MemberList {}

/// A chunk that both have begins at one address, so both cursors stand before it at the same time.
fn skip_shared(old: &mut Cursor<'_>, new: &mut Cursor<'_>) {
    while old.members.is_empty()
        && new.members.is_empty()
        && let ([old_chunk, old_rest @ ..], [new_chunk, new_rest @ ..]) = (old.chunks, new.chunks)
        && Arc::ptr_eq(old_chunk, new_chunk)
    {
        (old.chunks, new.chunks) = (old_rest, new_rest);
    }
}

/// What is left of a list.
struct Cursor<'a> {
    /// Of the chunk that was begun.
    members: &'a [Member],
    chunks: &'a [Chunk],
}

impl<'a> Cursor<'a> {
    fn new(list: &'a MemberList) -> Self {
        Self { members: &[], chunks: list.chunks() }
    }

    fn peek(&self) -> Option<&'a Member> {
        self.members.first().or_else(|| self.chunks.first()?.first())
    }

    fn take(&mut self) -> Option<&'a Member> {
        if self.members.is_empty() {
            let (chunk, rest) = self.chunks.split_first()?;
            (self.members, self.chunks) = (chunk, rest);
        }
        let (member, rest) = self.members.split_first()?;
        self.members = rest;
        Some(member)
    }
}
