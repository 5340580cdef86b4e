//! Members in the order of their addresses, in chunks that a list shares with the one it was made from: a change of one
//! of 100,000 copies one chunk and a table of chunks, and the difference of two lists skips the chunks that both have.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::member::Member;
use crate::instance::Address;

/// Members ordered by address, each address once.
#[derive(Clone, Default)]
pub(crate) struct MemberList {
    /// In order; none is empty.
    chunks: Vec<Chunk>,
    len: usize,
}

pub(super) type Chunk = Arc<[Member]>;

impl MemberList {
    /// `members` must be ordered by address, each address once.
    pub(crate) fn from_sorted(members: Vec<Member>) -> Self {
        debug_assert!(
            members.is_sorted_by(|a, b| a.address() < b.address()),
            "members are ordered by address and unique"
        );
        let mut list = Self::default();
        list.push_members(members);
        list
    }

    /// This list with other members at some addresses, or without them. `updates` must be ordered by address, each
    /// address once. Chunks without a change are shared.
    pub(crate) fn updated(&self, updates: Vec<(Address, Option<Member>)>) -> Self {
        let mut list = Self { chunks: Vec::with_capacity(self.chunks.len() + 1), len: 0 };
        let (mut rest, mut updates) = (&*self.chunks, updates.into_iter().peekable());
        while let Some((address, _)) = updates.peek() {
            // The chunk that an address is in is the last one that does not begin behind it.
            let at = rest.partition_point(|chunk| chunk[0].address() <= address).saturating_sub(1);
            let (before, from) = rest.split_at(at);
            list.extend(before);
            let Some((chunk, after)) = from.split_first() else {
                list.push_members(updates.filter_map(|(_, member)| member).collect());
                return list;
            };
            let end = after.first().map(|chunk| chunk[0].address());
            let mut members = Vec::with_capacity(chunk.len() + 1);
            let mut kept = &**chunk;
            while let Some((address, member)) = updates.next_if(|(address, _)| end.is_none_or(|end| address < end)) {
                let at = kept.partition_point(|member| *member.address() < address);
                members.extend_from_slice(&kept[..at]);
                kept = &kept[at..];
                if kept.first().is_some_and(|member| *member.address() == address) {
                    kept = &kept[1..];
                }
                members.extend(member);
            }
            members.extend_from_slice(kept);
            if members == **chunk {
                list.push(chunk.clone());
            } else {
                list.push_members(members);
            }
            rest = after;
        }
        list.extend(rest);
        list
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, address: &Address) -> Option<&Member> {
        let chunk = self.chunks.partition_point(|chunk| chunk[0].address() <= address).checked_sub(1)?;
        let chunk = &self.chunks[chunk];
        chunk.binary_search_by(|member| member.address().cmp(address)).ok().map(|index| &chunk[index])
    }

    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter { chunks: self.chunks.iter(), members: [].iter(), left: self.len }
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    fn extend(&mut self, chunks: &[Chunk]) {
        for chunk in chunks {
            self.push(chunk.clone());
        }
    }

    fn push_members(&mut self, members: Vec<Member>) {
        if members.len() <= LARGEST {
            return self.push(members.into());
        }
        let count = members.len().div_ceil(USUAL);
        for chunk in members.chunks(members.len().div_ceil(count)) {
            self.push(chunk.into());
        }
    }

    fn push(&mut self, chunk: Chunk) {
        self.len += chunk.len();
        match self.chunks.last_mut() {
            _ if chunk.is_empty() => {}
            Some(last) if last.len() + chunk.len() <= SMALL => *last = [&**last, &*chunk].concat().into(),
            _ => self.chunks.push(chunk),
        }
    }
}

impl fmt::Debug for MemberList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The members of a list, in order.
#[derive(Debug, Clone)]
pub(crate) struct Iter<'a> {
    chunks: slice::Iter<'a, Chunk>,
    members: slice::Iter<'a, Member>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Member;

    fn next(&mut self) -> Option<&'a Member> {
        loop {
            if let Some(member) = self.members.next() {
                self.left -= 1;
                return Some(member);
            }
            self.members = self.chunks.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// How many members a chunk has at first: 2 KiB, which is as much as the table of the chunks of 10,000.
const USUAL: usize = 96;

/// A chunk of more is split: every one can grow by a third first.
const LARGEST: usize = 128;

/// Neighbours that have no more than this together become one chunk.
const SMALL: usize = 48;
