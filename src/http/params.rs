//! Parameters in the query string of a request.

use std::future::{Ready, ready};
use std::ops::Deref;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Deserializer};

use crate::http::problem::{Code, Problem};

/// Extractor that parses the query string into `T`. A list field takes a parameter that occurs
/// several times.
pub(crate) struct Params<T>(T);

impl<T> Params<T> {
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Params<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> FromRequest for Params<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(parse(request.query_string()).map(Self))
    }
}

/// Deserializes `true` or `false`.
pub(crate) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(serde::de::Error::custom("expected true or false")),
    }
}

fn parse<T: DeserializeOwned>(query_string: &str) -> Result<T, Problem> {
    let deserializer = serde_html_form::Deserializer::from_bytes(query_string.as_bytes());
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        // `name[2]` becomes `name`, because all occurrences of a parameter have the same name.
        let name = path.split(['[', '.']).next().unwrap_or_default();
        let detail = match error.inner().to_string() {
            // serde_html_form reports this if a parameter that is no list occurs twice.
            detail if detail == "unsupported value" => "expected it once".to_owned(),
            detail => detail,
        };
        let missing = detail
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'));
        if let Some(name) = missing {
            return Problem::parameter(Code::InvalidParameter, name, "expected this parameter");
        }
        if detail.starts_with("unknown field") {
            return Problem::parameter(
                Code::UnknownParameter,
                name,
                detail.replace("field", "parameter"),
            );
        }
        let code = if name == "cursor" {
            Code::InvalidCursor
        } else {
            Code::InvalidParameter
        };
        Problem::parameter(code, name, detail)
    })
}
