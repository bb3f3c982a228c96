/// <reference types="vitest/config" />
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// The API that `npm run dev` works on: a running `wherry dev`.
const cluster = process.env.WHERRY_URL ?? 'https://127.0.0.1:6443';
const proxy = { target: cluster, secure: false, changeOrigin: true };

export default defineConfig({
  base: '/ui/',
  plugins: [svelte({ compilerOptions: { runes: true } })],
  // Nothing is inlined: the Content-Security-Policy allows files of this origin only.
  build: { assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  server: { proxy: { '/api': proxy, '/apis': proxy, '/ui/session': proxy } },
  test: { include: ['src/**/*.test.ts'] },
});
