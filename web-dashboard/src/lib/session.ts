// Who is signed in. The session itself is an HttpOnly cookie that no script can read; this file only exchanges
// a one-time code or a pasted token for it, and keeps the value that writes must carry against request forgery.

export interface Session {
  user: string;
  groups: string[];
  csrf: string;
}

/** The one-time code that `wherry ui` put behind the `#`, taken out of the address bar. */
export function takeCode(location: Location, history: History): string | null {
  const code = codeIn(location.hash);
  if (code) history.replaceState(null, '', location.pathname + location.search);
  return code;
}

/** `#code=…` → the code. */
export function codeIn(hash: string): string | null {
  return new URLSearchParams(hash.replace(/^#/, '')).get('code');
}

/** Signs in with a code or a bearer token. Throws an Error whose message can be shown. */
export async function signIn(credential: { code: string } | { token: string }): Promise<Session> {
  const response = await fetch('/ui/session', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(credential),
  });
  if (!response.ok) throw new Error(await reasonOf(response));
  return (await response.json()) as Session;
}

/** The session of this browser, or null where nobody is signed in. */
export async function currentSession(): Promise<Session | null> {
  const response = await fetch('/ui/session');
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(await reasonOf(response));
  return (await response.json()) as Session;
}

export async function signOut(session: Session): Promise<void> {
  await fetch('/ui/session', { method: 'DELETE', headers: { 'x-wherry-csrf': session.csrf } });
}

/** What the server said went wrong: a Status's message where the body is one. */
export async function reasonOf(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const status = JSON.parse(text) as { message?: string };
    if (status.message) return status.message;
  } catch {
    // Not JSON: the text itself is the reason.
  }
  return text.trim() || `the server answered ${response.status}`;
}
