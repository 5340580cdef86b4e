//! The head of a call's request, from which a policy makes its key.

use http::request::Parts;
use http::{Extensions, HeaderMap, Request, Uri};

/// The head of a call's request, for [`Policy::key`](crate::policy::Policy::key).
///
/// It is made of an [`http::Request`] or of its [`Parts`].
#[derive(Debug, Clone, Copy)]
pub struct CallHead<'a> {
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> CallHead<'a> {
    /// The method that is called, `/package.Service/Method`.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.uri.path()
    }

    /// The headers, which gRPC calls metadata.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What interceptors and layers put into the request beside its headers, which is not sent.
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl<'a> From<&'a Parts> for CallHead<'a> {
    fn from(head: &'a Parts) -> Self {
        Self { uri: &head.uri, headers: &head.headers, extensions: &head.extensions }
    }
}

impl<'a, B> From<&'a Request<B>> for CallHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self { uri: request.uri(), headers: request.headers(), extensions: request.extensions() }
    }
}
