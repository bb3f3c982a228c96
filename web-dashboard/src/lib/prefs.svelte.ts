// What a person likes: theme, density, keys. Kept in this browser.

type Theme = 'system' | 'light' | 'dark';
type Density = 'compact' | 'roomy';

function read<T extends string>(key: string, allowed: readonly T[], usual: T): T {
  const value = localStorage.getItem(`wherry.${key}`) as T | null;
  return value && allowed.includes(value) ? value : usual;
}

let theme = $state<Theme>(read('theme', ['system', 'light', 'dark'], 'system'));
let density = $state<Density>(read('density', ['compact', 'roomy'], 'compact'));
let nav = $state<'wide' | 'narrow'>(read('nav', ['wide', 'narrow'], 'wide'));
let keys = $state<'on' | 'off'>(read('keys', ['on', 'off'], 'on'));

export const prefs = {
  get theme(): Theme {
    return theme;
  },
  set theme(value: Theme) {
    theme = value;
    localStorage.setItem('wherry.theme', value);
    show();
  },
  get density(): Density {
    return density;
  },
  set density(value: Density) {
    density = value;
    localStorage.setItem('wherry.density', value);
    show();
  },
  /** Whether the navigation shows its icons alone. */
  get narrow(): boolean {
    return nav === 'narrow';
  },
  set narrow(value: boolean) {
    nav = value ? 'narrow' : 'wide';
    localStorage.setItem('wherry.nav', nav);
  },
  get keys(): boolean {
    return keys === 'on';
  },
  set keys(value: boolean) {
    keys = value ? 'on' : 'off';
    localStorage.setItem('wherry.keys', keys);
  },
};

/** Puts the choices where the styles see them. */
export function show(): void {
  const root = document.documentElement;
  if (theme === 'system') delete root.dataset.theme;
  else root.dataset.theme = theme;
  root.dataset.density = density;
}
