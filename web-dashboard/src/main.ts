// The dashboard's start: styles, then the application.
import './tokens.css';
import { mount } from 'svelte';
import App from './App.svelte';
import { show } from './lib/prefs.svelte';

show();
const target = document.getElementById('app');
if (!target) throw new Error('index.html has no element with the id app');
mount(App, { target });
