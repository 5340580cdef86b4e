//! A list of a range, page by page: however much stands in it, one page is all that is in memory.

use std::ops::ControlFlow;
use std::time::Duration;

use etcd_client::GetOptions;
use etcd_client::proto::PbKeyValue;

use super::connection::Connection;
use super::kv::{Kv, MAX_VALUE};
use super::range::Range;
use crate::error::{EtcdError, EtcdErrorKind};

/// A list under way. All its pages show the revision of the first one.
pub(crate) struct Scan {
    /// Where the next page begins.
    from: Vec<u8>,
    end: Vec<u8>,
    with_values: bool,
    /// How many keys the next page asks for.
    keys: i64,
    /// How many a page asks for at most: fewer once one was too much.
    most: i64,
    revision: Option<i64>,
    /// The size of the last page.
    page_bytes: usize,
    is_over: bool,
}

impl Scan {
    /// Of keys and their values.
    pub(crate) fn new(range: &Range) -> Self {
        Self {
            from: range.start().to_vec(),
            end: range.end(),
            with_values: true,
            keys: FIRST_PAGE,
            most: LARGEST_PAGE,
            revision: None,
            page_bytes: 0,
            is_over: false,
        }
    }

    /// Of keys with empty values.
    pub(crate) fn keys_only(range: &Range) -> Self {
        Self { with_values: false, ..Self::new(range) }
    }

    /// The revision that the list shows; 0 before its first page.
    pub(crate) fn revision(&self) -> i64 {
        self.revision.unwrap_or(0)
    }

    /// The size of the keys and values of the last page, as etcd sent them.
    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Whether its first page came.
    pub(crate) fn has_begun(&self) -> bool {
        self.revision.is_some()
    }

    /// Whether the last page came.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next page, linearizably. `limit` is for each request.
    ///
    /// A page that is too large to be read, or larger than the first one and not there in time, comes again with fewer
    /// keys, and none that follows has more. A key whose value alone is too large comes with a value that [`MAX_VALUE`]
    /// refuses.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the page comes again.
    pub(crate) async fn next(
        &mut self,
        connection: &Connection,
        range: &Range,
        limit: Duration,
    ) -> Result<Vec<Kv>, EtcdError> {
        loop {
            match self.page(self.with_values, connection, range, limit).await {
                Err(error) if error.kind == EtcdErrorKind::TooLarge && self.keys > 1 => {
                    self.shrink((self.keys / 4).max(1));
                }
                // The member has answered before. It may have had too much to put together.
                Err(error) if matches!(error.kind, EtcdErrorKind::Deadline(_)) && self.keys > FIRST_PAGE => {
                    self.shrink(FIRST_PAGE);
                }
                Err(error) if error.kind == EtcdErrorKind::TooLarge && self.with_values => {
                    let mut page = self.page(false, connection, range, limit).await?;
                    for kv in &mut page {
                        kv.value = vec![0; MAX_VALUE + 1];
                    }
                    return Ok(page);
                }
                page => return page,
            }
        }
    }

    /// After a page of so many bytes.
    fn resize(&mut self, bytes: usize) {
        if bytes > PAGE_BYTES {
            self.keys = (self.keys / 2).max(1);
        } else if bytes < PAGE_BYTES / 4 {
            self.keys = (self.keys * 4).min(self.most);
        }
    }

    /// No page of this list asks for more from now on.
    fn shrink(&mut self, keys: i64) {
        (self.keys, self.most) = (keys, keys);
    }

    async fn page(
        &mut self,
        with_values: bool,
        connection: &Connection,
        range: &Range,
        limit: Duration,
    ) -> Result<Vec<Kv>, EtcdError> {
        let mut options = GetOptions::new().with_range(self.end.clone()).with_limit(self.keys);
        if !with_values {
            options = options.with_keys_only();
        }
        if let Some(revision) = self.revision {
            options = options.with_revision(revision);
        }
        let get = || {
            let (mut kv, from, options) = (connection.kv.clone(), self.from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        };
        let page = connection.limited("list", range.name(), limit, get).await?.0;
        self.revision.get_or_insert(page.header.as_ref().map_or(0, |header| header.revision));
        match page.kvs.last() {
            Some(last) if page.more => {
                self.from.clone_from(&last.key);
                self.from.push(0);
            }
            _ => self.is_over = true,
        }
        self.page_bytes = page.kvs.iter().map(size).sum();
        self.resize(self.page_bytes);
        Ok(page.kvs.into_iter().map(Kv::from).collect())
    }
}

impl Connection {
    /// Shows `take` every key of a list, page by page and at one revision. `limit` is for each page.
    ///
    /// Starts over, with nothing taken, where the revision of the first page is compacted before the last one came.
    pub(crate) async fn list<T: Default>(
        &self,
        range: &Range,
        scan: impl Fn(&Range) -> Scan,
        limit: Duration,
        take: impl Fn(&mut T, Kv),
    ) -> Result<(i64, T), EtcdError> {
        let take = |taken: &mut T, kv| {
            take(taken, kv);
            ControlFlow::Continue(())
        };
        self.list_until(range, scan, limit, take).await
    }

    /// Like [`list`](Self::list), until `take` breaks: no page follows then.
    pub(crate) async fn list_until<T: Default>(
        &self,
        range: &Range,
        scan: impl Fn(&Range) -> Scan,
        limit: Duration,
        take: impl Fn(&mut T, Kv) -> ControlFlow<()>,
    ) -> Result<(i64, T), EtcdError> {
        let mut attempt = 1;
        let (mut pages, mut taken) = (scan(range), T::default());
        while !pages.is_over() {
            match pages.next(self, range, limit).await {
                Ok(page) => {
                    if page.into_iter().try_for_each(|kv| take(&mut taken, kv)).is_break() {
                        break;
                    }
                }
                Err(error) if error.kind == EtcdErrorKind::Compacted && attempt < LIST_ATTEMPTS => {
                    attempt += 1;
                    (pages, taken) = (scan(range), T::default());
                }
                Err(error) => return Err(error),
            }
        }
        Ok((pages.revision(), taken))
    }
}

fn size(kv: &PbKeyValue) -> usize {
    kv.key.len() + kv.value.len()
}

/// How many keys the first page asks for: enough for most services, and not too much of the largest values for etcd.
const FIRST_PAGE: i64 = 128;

/// How many keys a page asks for at most. etcd puts a page together before it is known that the values are too large,
/// so fewer would spare it more where junk lies in wait; but with a quarter of it, a list among 100,000 bad keys takes
/// half as long again.
const LARGEST_PAGE: i64 = 4_096;

/// How large a page should be: four times as many keys follow after a page of less than a quarter of it, and half as
/// many after one that is larger. Smaller pages cost etcd more, which looks at all that is left of the range for each
/// of them.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How often a list starts over because its revision was compacted under it.
const LIST_ATTEMPTS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_to_a_limit_that_falls_once_a_page_was_too_much() {
        let mut scan = Scan::new(&Range::below("p/echo/".to_owned()));
        for _ in 0..10 {
            scan.resize(0);
        }
        assert_eq!(scan.keys, LARGEST_PAGE);
        scan.resize(PAGE_BYTES + 1);
        assert_eq!(scan.keys, LARGEST_PAGE / 2, "one that was rather large is no reason for ever");
        scan.resize(0);
        assert_eq!(scan.keys, LARGEST_PAGE);
        scan.shrink(FIRST_PAGE);
        for _ in 0..10 {
            scan.resize(0);
        }
        assert_eq!(scan.keys, FIRST_PAGE, "one that was not read is");
    }
}
