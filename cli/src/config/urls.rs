//! Lists of URLs as people write them: separated by commas; after the first, the scheme may be
//! left out, and is then the first one's.

/// Reads a list of `scheme://host:port`, without a path.
///
/// # Errors
/// What is wrong, and how it is written. What may hold a password isn't quoted.
pub fn parse_list(text: &str, schemes: &[&str]) -> Result<Vec<String>, String> {
    if names_a_user(text) {
        return Err(format!(
            "a URL must not name a user or password ('@'); it must be {}://host:port",
            schemes[0]
        ));
    }
    let mut first_scheme = None;
    let mut urls = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (scheme, rest) = match part.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => match first_scheme {
                Some(scheme) => (scheme, part),
                None => return Err(format!("{part:?} must be {}://host:port", schemes[0])),
            },
        };
        if scheme == "https" && !schemes.contains(&"https") {
            return Err("TLS is not supported yet; use http://host:port".to_owned());
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let odd = |c: char| "/?#@\\".contains(c) || c.is_whitespace() || c.is_control();
        if !schemes.contains(&scheme) || authority.is_empty() || authority.contains(odd) {
            return Err(format!("{part:?} must be {}://host:port", schemes[0]));
        }
        first_scheme = Some(scheme);
        urls.push(format!("{scheme}://{authority}"));
    }
    Ok(urls)
}

/// Whether a list of URLs, or what was meant to be one, may hold a password.
pub fn names_a_user(text: &str) -> bool {
    text.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_its_scheme_from_the_first() {
        let read = |text| parse_list(text, &["http"]);
        assert_eq!(read("http://a:1"), Ok(vec!["http://a:1".to_owned()]));
        let two = Ok(vec!["http://a:1".to_owned(), "http://[::1]:2".to_owned()]);
        assert_eq!(read("http://a:1/, [::1]:2"), two);
        let mixed = parse_list("https://a:1,http://b:2,c:3", &["http", "https"]);
        assert_eq!(mixed.map(|urls| urls[2].clone()), Ok("http://c:3".to_owned()));
    }

    #[test]
    fn what_is_no_url_is_refused_with_what_would_be() {
        let wrong = ["", "a:1", "http://", "http://a:1,", "http://a:1,,b:2", "ftp://a:1"];
        for text in wrong.iter().chain(&["http://a:1/path", "http://u:p@a:1", "http://a b:1"]) {
            let why = parse_list(text, &["http"]).expect_err(text);
            assert!(why.contains("http://host:port"), "{text}: {why}");
        }
        for text in ["http://root:hunter2@a:1", "http://a:1,root:hunter2@b:1", "hunter2@", "//@"] {
            let why = parse_list(text, &["http", "https"]).expect_err(text);
            assert!(why.contains("password") && !why.contains("hunter2"), "{text}: {why}");
        }
        let why = parse_list("https://a:1", &["http"]).expect_err("no TLS");
        assert!(why.contains("TLS"), "{why}");
    }
}
