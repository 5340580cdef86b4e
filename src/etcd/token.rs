//! Tokens of logins: one for the whole cluster, the one that each member takes, and the channel that adds it to every
//! request.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::header::{HeaderName, HeaderValue, InvalidHeaderValue};
use tokio::time::Instant;
use tonic::transport::Channel;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::error::BoxError;

/// What a login brought. `Debug` does not show it.
pub(super) struct Token {
    /// `None` from a cluster that wants no login.
    value: Option<HeaderValue>,
    /// The member that gave it out, and when.
    member: usize,
    given: Instant,
}

impl Token {
    pub(super) fn new(text: &str, member: usize) -> Result<Self, InvalidHeaderValue> {
        let mut value = HeaderValue::from_str(text)?;
        // Kept out of `Debug`, and out of the tables of HTTP/2's compression.
        value.set_sensitive(true);
        Ok(Self { value: Some(value), member, given: Instant::now() })
    }

    /// From a member of a cluster that wants no login.
    pub(super) fn not_needed(member: usize) -> Self {
        Self { value: None, member, given: Instant::now() }
    }

    /// When this member gave it out, if it did.
    pub(super) fn given_by(&self, member: usize) -> Option<Instant> {
        (self.member == member).then_some(self.given)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("member", &self.member).finish_non_exhaustive()
    }
}

/// The token that is sent to one member: shared by all connections to it.
#[derive(Clone, Default, Debug)]
pub(super) struct TokenSlot(Arc<ArcSwapOption<Token>>);

impl TokenSlot {
    pub(super) fn token(&self) -> Option<Arc<Token>> {
        self.0.load_full()
    }

    /// A channel whose requests carry the token of this slot.
    pub(super) fn add_to(&self, channel: Channel) -> etcd_client::Channel {
        let slot = self.0.clone();
        let add = move |mut request: http::Request<tonic::body::Body>| {
            if let Some(value) = slot.load().as_ref().and_then(|token| token.value.clone()) {
                request.headers_mut().insert(TOKEN, value);
            }
            request
        };
        let channel = channel.map_request(add).map_err(BoxError::from);
        etcd_client::Channel::Custom(BoxCloneSyncService::new(channel))
    }
}

/// The tokens of a cluster: the newest, and the one that each member takes.
///
/// A member goes on with its token while it takes that, so that a member of another cluster, which knows none but its
/// own, changes nothing for the others. One that refuses its token is sent the newest first.
#[derive(Debug)]
pub(super) struct Tokens {
    newest: Option<Arc<Token>>,
    members: Vec<MemberToken>,
}

#[derive(Debug, Default)]
struct MemberToken {
    slot: TokenSlot,
    /// The one that it refused last.
    refused: Option<Arc<Token>>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { newest: None, members: Vec::new() }
    }

    /// There is one more member.
    pub(super) fn add_member(&mut self) {
        self.members.push(MemberToken::default());
    }

    pub(super) fn slot(&self, member: usize) -> TokenSlot {
        self.members[member].slot.clone()
    }

    /// The token for a member, unless it refused all there is: then a login is due.
    pub(super) fn of(&self, member: usize) -> Option<Arc<Token>> {
        let MemberToken { slot, refused } = &self.members[member];
        slot.token().or_else(|| {
            let newest = self.newest.as_ref().filter(|newest| !is(refused.as_ref(), newest))?;
            slot.0.store(Some(newest.clone()));
            Some(newest.clone())
        })
    }

    /// A login at a member brought this token.
    pub(super) fn on_login(&mut self, member: usize, token: Arc<Token>) {
        self.members[member].slot.0.store(Some(token.clone()));
        self.newest = Some(token);
    }

    /// A member refused this token.
    pub(super) fn on_refused(&mut self, member: usize, token: &Arc<Token>) {
        let MemberToken { slot, refused } = &mut self.members[member];
        if is(slot.token().as_ref(), token) {
            slot.0.store(None);
        }
        *refused = Some(token.clone());
    }
}

fn is(token: Option<&Arc<Token>>, other: &Arc<Token>) -> bool {
    token.is_some_and(|token| Arc::ptr_eq(token, other))
}

/// The header in which etcd looks for a token.
const TOKEN: HeaderName = HeaderName::from_static("token");

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Arc<Token> {
        Arc::new(Token::new(text, 0).expect("a header's value"))
    }

    fn tokens_of(members: usize) -> Tokens {
        let mut tokens = Tokens::new();
        (0..members).for_each(|_| tokens.add_member());
        tokens
    }

    fn same(one: Option<&Arc<Token>>, other: &Arc<Token>) -> bool {
        is(one, other)
    }

    #[test]
    fn all_members_share_the_token_of_one_login() {
        let mut tokens = tokens_of(3);
        assert!(tokens.of(0).is_none(), "a login is due");
        let first = token("first");
        tokens.on_login(0, first.clone());
        for member in 0..3 {
            assert!(same(tokens.of(member).as_ref(), &first), "member {member}");
            assert!(same(tokens.slot(member).token().as_ref(), &first), "connections to member {member} send it");
        }
    }

    #[test]
    fn a_member_that_refuses_its_token_is_sent_the_newest_before_a_login() {
        let mut tokens = tokens_of(2);
        let (first, second) = (token("first"), token("second"));
        tokens.on_login(0, first.clone());
        assert!(same(tokens.of(1).as_ref(), &first), "shared");
        tokens.on_refused(0, &first);
        assert!(tokens.of(0).is_none(), "the newest is the one that it refused");
        tokens.on_login(0, second.clone());
        assert!(same(tokens.of(1).as_ref(), &first), "the other one takes the first still");
        tokens.on_refused(1, &first);
        assert!(same(tokens.of(1).as_ref(), &second), "no login of its own");
    }

    #[test]
    fn a_stranger_s_token_changes_nothing_for_members_that_take_theirs() {
        let mut tokens = tokens_of(2);
        let (ours, strange) = (token("ours"), token("strange"));
        tokens.on_login(0, ours.clone());
        assert!(same(tokens.of(1).as_ref(), &ours), "tried at the stranger");
        tokens.on_refused(1, &ours);
        tokens.on_login(1, strange.clone());
        assert!(same(tokens.of(0).as_ref(), &ours), "the member goes on with its own");
        assert!(same(tokens.of(1).as_ref(), &strange), "and so does the stranger");
    }

    #[test]
    fn a_late_refusal_of_an_old_token_leaves_the_new_one_in_place() {
        let mut tokens = tokens_of(1);
        let (first, second) = (token("first"), token("second"));
        tokens.on_login(0, first.clone());
        tokens.on_refused(0, &first);
        tokens.on_login(0, second.clone());
        tokens.on_refused(0, &first);
        assert!(same(tokens.of(0).as_ref(), &second), "it was never refused");
    }

    #[test]
    fn no_debug_shows_a_token() {
        let mut tokens = tokens_of(1);
        tokens.on_login(0, token("canary"));
        let shown = format!("{tokens:?} {:?}", tokens.slot(0));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
