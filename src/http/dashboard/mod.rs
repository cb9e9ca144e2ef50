//! The dashboard: static files that call the routes of the service.

use std::sync::LazyLock;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, HeaderValue, LOCATION};
use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};

use crate::http::cached::{self, Content};
use crate::http::problem::Problem;

/// Allows nothing of another host, nothing inline, and no text that becomes markup: logged text is
/// hostile.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types";

/// A file that is served.
struct Asset {
    name: &'static str,
    content: Content,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! assets {
    ($($name:literal: $content_type:expr),+ $(,)?) => {
        LazyLock::new(|| vec![$(Asset {
            name: $name,
            content: Content::new($content_type, include_bytes!($name).as_slice()),
        }),+])
    };
}

const PAGE: &str = "index.html";
static ASSETS: LazyLock<Vec<Asset>> = assets! {
    "index.html": HTML,
    "style.css": CSS,
    "icon.svg": "image/svg+xml",
    "main.js": SCRIPT,
    "api.js": SCRIPT,
    "choices.js": SCRIPT,
    "detail.js": SCRIPT,
    "state.js": SCRIPT,
    "dom.js": SCRIPT,
    "format.js": SCRIPT,
    "health.js": SCRIPT,
    "plot.js": SCRIPT,
    "timecharts.js": SCRIPT,
    "overview.js": SCRIPT,
    "failures.js": SCRIPT,
    "queries.js": SCRIPT,
    "group.js": SCRIPT,
    "calibration.js": SCRIPT,
    "scores.js": SCRIPT,
    "vendor/uPlot.iife.min.js": SCRIPT,
    "vendor/uPlot.min.css": CSS,
};

/// Responds with the page.
pub(crate) async fn page(request: HttpRequest) -> Result<HttpResponse, Problem> {
    serve(&request, PAGE)
}

/// Responds with a file of the page.
pub(crate) async fn asset(
    request: HttpRequest,
    name: Path<String>,
) -> Result<HttpResponse, Problem> {
    serve(&request, &name)
}

/// Redirects from a scope without a slash to the page, whose files have relative addresses.
pub(crate) async fn to_page(request: HttpRequest) -> HttpResponse {
    // Relative, because a proxy may serve the scope below a prefix of its own.
    let scope = request.path().rsplit('/').next().unwrap_or_default();
    let query = request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    HttpResponse::TemporaryRedirect()
        .insert_header((LOCATION, format!("./{scope}/{query}")))
        .finish()
}

fn serve(request: &HttpRequest, name: &str) -> Result<HttpResponse, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| Problem::not_found("there is no such file"))?;
    let mut response = cached::respond(request, &asset.content);
    response
        .headers_mut()
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size over the wire, for a browser that accepts gzip.
    fn weight(assets: impl IntoIterator<Item = &'static Asset>) -> usize {
        let size = |asset: &Asset| asset.content.gzip().expect(asset.name).len();
        assets.into_iter().map(size).sum()
    }

    #[test]
    fn all_pages_weigh_less_than_150_kb_compressed() {
        let weight = weight(ASSETS.iter());
        assert!(weight < 150_000, "{weight} bytes");
    }

    /// `index.html` names each file that the first page needs.
    #[test]
    fn the_first_page_weighs_less_than_60_kb_compressed() {
        let page = include_str!("index.html");
        let weight = weight(ASSETS.iter().filter(|asset| {
            asset.name == PAGE || page.contains(&format!("\"assets/{}\"", asset.name))
        }));
        assert!(weight < 60_000, "{weight} bytes");
    }
}
