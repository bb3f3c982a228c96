// Who is signed in. The session itself is an HttpOnly cookie that no script can read; this file only exchanges
// a one-time code or a pasted token for it, and keeps the value that writes must carry against request forgery.

import { call, carry, Failure, request } from './api';
import { keepFor } from './drafts';

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

/** Signs in with a code or a bearer token. Throws a Failure whose message can be shown. */
export async function signIn(credential: { code: string } | { token: string }): Promise<Session> {
  return begun(await call<Session>('/ui/session', { method: 'POST', body: credential }));
}

function begun(session: Session): Session {
  carry(session.csrf);
  keepFor(session.user);
  return session;
}

/** The session of this browser, or null where nobody is signed in. */
export async function currentSession(): Promise<Session | null> {
  try {
    const session = await call<Session | null>('/ui/session');
    return session && begun(session);
  } catch (error) {
    // The token that it was opened with has ended, and the session with it.
    if (error instanceof Failure && error.code === 401) return null;
    throw error;
  }
}

export async function signOut(): Promise<void> {
  await request('/ui/session', { method: 'DELETE' });
}
